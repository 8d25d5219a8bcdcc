package path

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
)

func (s *scene) confirm(hop Hop) Health {
	s.Helper()
	h, err := s.paths.Confirm(context.Background(), hop)
	s.ok(err)
	return h
}

func TestConfirm(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			s := newScene(t)
			h := s.hops(f)
			gw := h.far.Gateway
			want := Health{Hop: h.far, Interface: "eth0", Up: true, Carrier: true, Gateway: GatewayOK}

			if got := s.paths.Health(h.far); got.Gateway != GatewayUnconfirmed || got.Reason() != "" {
				t.Errorf("before asking: %+v, %q", got, got.Reason())
			}
			if got := s.confirm(h.far); got != want {
				t.Errorf("absent entry: %+v", got)
			}
			s.eventually("learn that", func() bool { return s.paths.Health(h.far) == want })
			mac := s.mac(gw)
			for _, state := range []int{netlink.NUD_STALE, netlink.NUD_REACHABLE, netlink.NUD_PERMANENT} {
				s.neighbour(gw, mac, state)
				if got := s.confirm(h.far); got != want {
					t.Errorf("entry in state %#x: %+v", state, got)
				}
				if now := s.mac(gw); now != mac {
					t.Errorf("link-layer address is %s, was %s", now, mac)
				}
			}
			s.neighbour(gw, mac, netlink.NUD_STALE)

			want = Health{Hop: h.near, Interface: "eth0", Up: true, Carrier: true}
			if got := s.confirm(h.near); got != want {
				t.Errorf("peer on the link: %+v", got)
			}

			// The gateway falls silent.
			s.setGateway(false)
			s.settle()
			before := s.paths.Generation(h.far)
			got := s.confirm(h.far)
			if !strings.HasPrefix(got.Reason(), fmt.Sprintf("gateway %s on eth0 does not answer ", gw)) {
				t.Errorf("silent gateway: %+v, %q", got, got.Reason())
			}
			if again := s.confirm(h.far); again.Gateway != GatewayFailed {
				t.Errorf("silent gateway, failed entry: %+v", again)
			}
			s.settle()
			if s.paths.Generation(h.far) != before {
				t.Error("asking a silent gateway raised the generation")
			}
			s.rises("gateway back", h.far, func() {
				s.setGateway(true)
				s.eventually("confirm the gateway", func() bool { return s.confirm(h.far).Gateway == GatewayOK })
			})

			ctx, cancel := context.WithCancel(context.Background())
			s.setGateway(false)
			cancel()
			if got, err := s.paths.Confirm(ctx, h.far); !errors.Is(err, context.Canceled) || got.Gateway != GatewayUnconfirmed {
				t.Errorf("cancelled: %+v, %v", got, err)
			}

			s.ok(s.host.LinkDown(s.uplink))
			s.eventually("see carrier go", func() bool { return s.paths.Health(h.far).Reason() == "interface eth0 has no carrier" })
			if got := s.confirm(h.far); got.Carrier {
				t.Errorf("without carrier: %+v", got)
			}
			s.ok(s.host.LinkUp(s.uplink))
			s.ok(s.nl.LinkSetDown(s.eth))
			s.eventually("see it down", func() bool { return s.paths.Health(h.near).Reason() == "interface eth0 is down" })
			s.ok(s.nl.LinkDel(s.eth))
			gone := fmt.Sprintf("interface %d is gone", h.far.Interface)
			s.eventually("see it go", func() bool { return s.paths.Health(h.far).Reason() == gone })
			if got := s.confirm(h.far); got.Up {
				t.Errorf("without interface: %+v", got)
			}
		})
	}
}

func (s *scene) mac(a netip.Addr) string {
	s.Helper()
	list, err := s.nl.NeighList(s.eth.Attrs().Index, netlink.FAMILY_ALL)
	s.ok(err)
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
			return n.HardwareAddr.String()
		}
	}
	s.Fatalf("no neighbour %s", a)
	return ""
}

// setGateway stops or starts the gateway's answers, while our carrier stays.
func (s *scene) setGateway(up bool) {
	s.Helper()
	name, _ := s.uplink.Interface(s.gateway)
	s.in(s.gateway, func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		if !up {
			// Else its addresses of IPv6 would go for ever.
			if err := s.gateway.SetSysctl("net.ipv6.conf."+name+".keep_addr_on_down", "1"); err != nil {
				return err
			}
			return nl.LinkSetDown(link)
		}
		return nl.LinkSetUp(link)
	})
}

func TestNobodyAsksOnPointToPoint(t *testing.T) {
	s := newScene(t)
	s.ok(s.nl.LinkSetARPOff(s.eth))
	h := s.hops(families()[0])
	s.eventually("see ARP go", func() bool { return s.paths.Health(h.far).Gateway == GatewayOK })
	if got := s.confirm(h.far); got.Gateway != GatewayOK {
		t.Errorf("got %+v", got)
	}
}

// confirmFor is the unprivileged process: it knows the paths of its namespace
// and cannot ask.
func confirmFor(text string) error {
	var hop Hop
	var gateway string
	if _, err := fmt.Sscan(text, &hop.Interface, &gateway); err != nil {
		return err
	}
	hop.Gateway = netip.MustParseAddr(gateway)
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	p, err := Open(context.Background(), ns)
	if err != nil {
		return err
	}
	h, err := p.Confirm(context.Background(), hop)
	r, routeErr := p.Route(netip.MustParseAddr("192.0.2.9"), RouteKey{Local: netip.MustParseAddr("10.0.0.1")})
	fmt.Printf("%s\n%t\n%v\n%v\n", h.Gateway, r.Hop == hop, routeErr, err)
	return errors.Join(p.Close(), ns.Close())
}

func TestConfirmWithoutCapability(t *testing.T) {
	s := newScene(t)
	h := s.hops(families()[0])
	s.neighbour(h.far.Gateway, "02:00:00:00:00:01", netlink.NUD_REACHABLE)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("PATH_TEST_CONFIRM=%d %s", h.far.Interface, h.far.Gateway))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	s.ok(s.host.Start(cmd))
	s.ok(cmd.Wait())
	lines := strings.Split(out.String(), "\n")
	if lines[0] != "unconfirmed" || lines[1] != "true" || lines[2] != "<nil>" || !strings.Contains(lines[3], "CAP_NET_ADMIN") {
		t.Errorf("it said %q", out.String())
	}
}

func TestReason(t *testing.T) {
	tests := []struct {
		health Health
		want   string
	}{
		{Health{Interface: "eth0", Up: true, Carrier: true}, ""},
		{Health{Interface: "eth0", Up: true, Carrier: true, Gateway: GatewayUnconfirmed}, ""},
		{Health{Interface: "eth0"}, "interface eth0 is down"},
		{Health{Interface: "eth0", Up: true}, "interface eth0 has no carrier"},
		{Health{Interface: "\x1b[2J", Up: true}, `interface \x1b[2J has no carrier`},
		{Health{Hop: Hop{Interface: 9}}, "interface 9 is gone"},
		{Health{Hop: Hop{Interface: 1, Gateway: netip.MustParseAddr("10.0.0.1")}, Interface: "eth0", Up: true, Carrier: true, Gateway: GatewayFailed}, "gateway 10.0.0.1 on eth0 does not answer ARP"},
		{Health{Hop: Hop{Interface: 1, Gateway: netip.MustParseAddr("fe80::1")}, Interface: "eth0", Up: true, Carrier: true, Gateway: GatewayFailed}, "gateway fe80::1 on eth0 does not answer neighbour discovery"},
	}
	for _, tt := range tests {
		if got := tt.health.Reason(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.health, got, tt.want)
		}
	}
	for nud, want := range map[uint16]GatewayState{
		unix.NUD_NONE: GatewayUnconfirmed, unix.NUD_INCOMPLETE: GatewayUnconfirmed, unix.NUD_STALE: GatewayUnconfirmed,
		unix.NUD_REACHABLE: GatewayOK, unix.NUD_NOARP: GatewayOK, unix.NUD_FAILED: GatewayFailed,
	} {
		if got := gatewayState(nud); got != want {
			t.Errorf("entry in state %#x: %s, want %s", nud, got, want)
		}
	}
}
