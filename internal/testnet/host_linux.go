package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"deadpeer/internal/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a network namespace with the interfaces eth0, eth1, … of its links,
// in the order they were connected. Safe for concurrent use.
type Host struct {
	net  *Net
	name string
	ns   *netns.NS
	nl   *netlink.Handle // in its namespace
	devs int             // guarded by net.mu
}

// Name is the name the host was made with.
func (h *Host) Name() string { return h.name }

// NS is the host's namespace; the handle belongs to the Net.
func (h *Host) NS() *netns.NS { return h.ns }

// Do runs fn on a thread inside the host's namespace; see [netns.NS.Do].
func (h *Host) Do(fn func() error) error { return h.ns.Do(fn) }

// Listen opens a TCP listener on the host. addr is a literal address and
// port. Neither it nor what it accepts has keepalive on or speaks MPTCP.
func (h *Host) Listen(ctx context.Context, network, addr string) (*net.TCPListener, error) {
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	tcp, err := inside[*net.TCPListener](h, network, addr, func() (io.Closer, error) { return config.Listen(ctx, network, addr) })
	if err != nil {
		return nil, fmt.Errorf("listen on host %s: %w", h.name, err)
	}
	return tcp, nil
}

// Dial connects from the host by TCP. addr is a literal address and port.
// The connection has keepalive off and does not speak MPTCP.
func (h *Host) Dial(ctx context.Context, network, addr string) (*net.TCPConn, error) {
	dialer := net.Dialer{KeepAlive: -1}
	dialer.SetMultipathTCP(false)
	tcp, err := inside[*net.TCPConn](h, network, addr, func() (io.Closer, error) { return dialer.DialContext(ctx, network, addr) })
	if err != nil {
		return nil, fmt.Errorf("dial from host %s: %w", h.name, err)
	}
	return tcp, nil
}

// inside opens a listener or a connection in the host's namespace.
func inside[T io.Closer](h *Host, network, addr string, open func() (io.Closer, error)) (tcp T, err error) {
	// A name would be resolved by goroutines that are not in the namespace.
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return tcp, err
	}
	err = h.Do(func() error {
		c, err := open()
		if err != nil {
			return err
		}
		var ok bool
		if tcp, ok = c.(T); !ok {
			return errors.Join(net.UnknownNetworkError(network), c.Close())
		}
		return nil
	})
	return tcp, err
}

// Start starts cmd inside the host. Do not set SysProcAttr.Pdeathsig: it
// follows the starting thread, which may end before the process.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// SetSysctl sets a network sysctl of the host by its dotted name, such as
// net.ipv4.tcp_keepalive_time. Names outside net. are refused: they would
// change the machine.
func (h *Host) SetSysctl(name, value string) error {
	rel := strings.ReplaceAll(name, ".", "/")
	if !strings.HasPrefix(rel, "net/") || !filepath.IsLocal(rel) {
		return fmt.Errorf("set sysctl %s: not of a network namespace", name)
	}
	err := h.Do(func() error {
		// Below /proc/sys/net the kernel shows the opening thread's namespace.
		f, err := os.OpenFile(filepath.Join("/proc/sys", rel), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return fmt.Errorf("set sysctl %s on host %s: %w", name, h.name, err)
	}
	return nil
}

// RouteVia makes the other end of link the host's default gateway, for IPv4
// and IPv6.
func (h *Host) RouteVia(link *Link) error {
	s, err := link.side(h)
	if err != nil {
		return fmt.Errorf("route host %s: %w", h.name, err)
	}
	own, gateway := link.ends[s], link.ends[1-s]
	for _, gw := range []netip.Addr{gateway.ipv4, gateway.ipv6} {
		if err := h.nl.RouteReplace(&netlink.Route{LinkIndex: own.devIndex, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("route host %s via %s: %w", h.name, gw, err)
		}
	}
	return nil
}

// LinkDown pulls the cable out at the host's end: its interface loses
// carrier, as the host and its programs can see. Addresses and routes stay.
func (h *Host) LinkDown(link *Link) error { return h.setLink(link, false) }

// LinkUp puts the cable back.
func (h *Host) LinkUp(link *Link) error { return h.setLink(link, true) }

func (h *Host) setLink(link *Link, up bool) error {
	s, err := link.side(h)
	if err != nil {
		return fmt.Errorf("set link of host %s: %w", h.name, err)
	}
	port := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link.ends[s].portIndex}}
	set := h.net.wire.nl.LinkSetDown
	if up {
		set = h.net.wire.nl.LinkSetUp
	}
	if err := set(port); err != nil {
		return fmt.Errorf("set link of host %s: %w", h.name, err)
	}
	return h.net.await("carrier of host "+h.name, func() (bool, error) {
		flags, err := interfaceFlags(h, link.ends[s].devIndex)
		return up && flags == running || !up && flags == unix.IFF_UP, err
	})
}

// running is the state of an interface that works.
const running = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING

// interfaceFlags are those of an interface that running consists of.
func interfaceFlags(h *Host, index int) (uint32, error) {
	dev, err := h.nl.LinkByIndex(index)
	if err != nil {
		return 0, err
	}
	return dev.Attrs().RawFlags & running, nil
}

func (h *Host) close() error {
	if h.nl != nil {
		h.nl.Close()
	}
	return h.ns.Close()
}
