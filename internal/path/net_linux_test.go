package path

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
	"deadpeer/internal/testnet"
)

// TestMain lets the test binary be an unprivileged process.
func TestMain(m *testing.M) {
	if hop := os.Getenv("PATH_TEST_CONFIRM"); hop != "" {
		if err := confirmFor(hop); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// scene is a host with its gateway, and a second link to elsewhere.
type scene struct {
	*testing.T
	host, gateway, elsewhere *testnet.Host
	uplink, sidelink         *testnet.Link
	paths                    *Paths
	nl                       *netlink.Handle // in the host
	eth, side                netlink.Link
}

func newScene(t *testing.T) *scene {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	s := &scene{T: t}
	n, err := testnet.New(ctx)
	s.ok(err)
	t.Cleanup(func() { s.ok(n.Close()) })
	s.host, err = n.Host("host")
	s.ok(err)
	s.gateway, err = n.Router("gateway")
	s.ok(err)
	s.elsewhere, err = n.Router("elsewhere")
	s.ok(err)
	s.uplink, err = n.Connect(s.host, s.gateway)
	s.ok(err)
	s.sidelink, err = n.Connect(s.host, s.elsewhere)
	s.ok(err)
	s.ok(s.host.RouteVia(s.uplink))
	s.ok(s.host.Do(func() (err error) {
		s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}))
	t.Cleanup(s.nl.Close)
	s.eth, s.side = s.link(s.uplink), s.link(s.sidelink)
	s.paths, err = Open(ctx, s.host.NS())
	s.ok(err)
	t.Cleanup(func() { s.ok(s.paths.Close()) })
	return s
}

func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) link(l *testnet.Link) netlink.Link {
	s.Helper()
	_, index := l.Interface(s.host)
	link, err := s.nl.LinkByIndex(index)
	s.ok(err)
	return link
}

func (s *scene) in(h *testnet.Host, fn func(*netlink.Handle) error) {
	s.Helper()
	s.ok(h.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		return fn(nl)
	}))
}

func (s *scene) route(peer string) Route {
	s.Helper()
	r, err := s.paths.Route(netip.MustParseAddr(peer), RouteKey{})
	s.ok(err)
	return r
}

// settle waits until what happened so far has been noticed: notifications
// come in order.
func (s *scene) settle() {
	s.Helper()
	for range 2 {
		mark := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "mark"}}
		s.ok(s.nl.LinkAdd(mark))
		s.eventually("notice the mark", func() bool { return s.paths.Health(Hop{Interface: uint32(mark.Index)}).Interface == "mark" })
		s.ok(s.nl.LinkDel(mark))
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *scene) eventually(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("did not %s", what)
		}
	}
}

// ipFamily is what differs between IPv4 and IPv6.
type ipFamily struct {
	name             string
	version          int
	far, near, spare string // a peer behind the gateway, one on its link, a free address there
	farNet           string
	of               func(*testnet.Link, *testnet.Host) netip.Addr
	bits             int
}

func families() []ipFamily {
	return []ipFamily{
		{"ipv4", netlink.FAMILY_V4, "192.0.2.9", "10.0.0.9", "10.0.0.77", "192.0.2.0/24", (*testnet.Link).IPv4, 24},
		{"ipv6", netlink.FAMILY_V6, "2001:db8::9", "fd00::9", "fd00::77", "2001:db8::/64", (*testnet.Link).IPv6, 64},
	}
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

func parseNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return ipNet(p.Addr(), p.Bits())
}

func TestCloseEndsAll(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	before := open()
	for range 3 {
		p, err := Open(context.Background(), ns)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := p.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if _, err := p.Route(netip.MustParseAddr("127.0.0.1"), RouteKey{}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("route after close: %v", err)
		}
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Open(ctx, ns); !errors.Is(err, context.Canceled) {
		t.Errorf("open with ended context: %v", err)
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors open after a failed open, %d before", after, before)
	}
}

func openHere(tb testing.TB) *Paths {
	tb.Helper()
	ns, err := netns.Current()
	if err != nil {
		tb.Fatal(err)
	}
	p, err := Open(context.Background(), ns)
	if err = errors.Join(err, ns.Close()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}
