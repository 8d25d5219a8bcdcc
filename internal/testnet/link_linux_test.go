package testnet

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

	"deadpeer/internal/wire"
)

func TestCut(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		s := connect(t, a, b, address(l, b))
		crosses(t, s.client, s.server)

		check(t, l.Cut())
		must(s.client.Write([]byte("hello")))(t)
		must(s.server.Write([]byte("hello")))(t)
		silent(t, s.server)
		silent(t, s.client)
		check(t, l.Heal()) // and the retransmissions arrive
		for _, c := range []net.Conn{s.client, s.server} {
			check(t, c.SetReadDeadline(time.Now().Add(patient)))
			must(c.Read(make([]byte, 5)))(t)
		}

		check(t, l.CutOneWay(a))
		crosses(t, s.server, s.client)
		must(s.client.Write([]byte("hello")))(t)
		silent(t, s.server)
		check(t, l.Heal())
	})
}

// TestCutNeighbours sees that a cut link still resolves neighbours, so that
// nothing local tells of the cut.
func TestCutNeighbours(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	check(t, l.Cut())
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		ip := address(l, b)
		ctx, cancel := context.WithTimeout(t.Context(), silence)
		defer cancel()
		if _, err := a.Dial(ctx, "tcp", netip.AddrPortFrom(ip, 1).String()); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial over a cut link: %v, want a timeout", err)
		}
		_, index := l.Interface(a)
		settles(t, "neighbour", func() (string, bool) {
			list := must(a.nl.NeighList(index, netlink.FAMILY_ALL))(t)
			for _, n := range list {
				if got, _ := netip.AddrFromSlice(n.IP); got.Unmap() == ip && len(n.HardwareAddr) == 6 && n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) == 0 {
					return "", true
				}
			}
			return fmt.Sprint(list), false
		})
	})
}

// datagrams opens a socket in each host, connected to each other.
func datagrams(t *testing.T, network string, a, b *Host, ipA, ipB netip.Addr) (ca, cb net.Conn) {
	t.Helper()
	open := func(h *Host, local, remote netip.Addr) (c net.Conn) {
		const port = 7
		check(t, h.Do(func() (err error) {
			if network == "udp" {
				c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, port)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, port)))
			} else {
				c, err = net.DialIP(network, &net.IPAddr{IP: local.AsSlice()}, &net.IPAddr{IP: remote.AsSlice()})
			}
			return err
		}))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	return open(a, ipA, ipB), open(b, ipB, ipA)
}

func received(t *testing.T, c net.Conn) (n int) {
	t.Helper()
	for {
		check(t, c.SetReadDeadline(time.Now().Add(silence)))
		if _, err := c.Read(make([]byte, 64)); err != nil {
			return n
		}
		n++
	}
}

func TestCutDatagrams(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		echo, network := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, "ip4:icmp" // RFC 792, with its checksum
		if address(l, a).Is6() {
			echo, network = []byte{128, 0, 0, 0, 0, 0, 0, 0}, "ip6:ipv6-icmp" // the kernel adds the checksum
		}
		ping, _ := datagrams(t, network, a, b, address(l, a), address(l, b))
		send, receive := datagrams(t, "udp", a, b, address(l, a), address(l, b))
		try := func() (pings, datagrams int) {
			must(ping.Write(echo))(t)
			must(send.Write([]byte("x")))(t)
			return received(t, ping), received(t, receive)
		}
		if p, d := try(); p == 0 || d != 1 {
			t.Errorf("whole link: %d echo replies, %d datagrams", p, d)
		}
		check(t, l.CutOneWay(b)) // the reply is lost
		if p, d := try(); p != 0 || d != 1 {
			t.Errorf("way back cut: %d echo replies, %d datagrams", p, d)
		}
		check(t, l.Cut())
		if p, d := try(); p != 0 || d != 0 {
			t.Errorf("cut: %d echo replies, %d datagrams", p, d)
		}
		check(t, l.Heal())
	})
}

func TestLossy(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		ca, cb := datagrams(t, "udp", a, b, address(l, a), address(l, b))
		// 200 at 50 % are 100 ± 7: seven deviations off, chance is ruled out.
		// More would not fit the receiver's buffer.
		for _, test := range []struct{ percent, min, max int }{{0, 200, 200}, {50, 50, 150}, {100, 0, 0}} {
			check(t, l.Lossy(float64(test.percent), 0))
			for i := range 200 {
				must(ca.Write([]byte("x")))(t)
				if i%50 == 0 {
					time.Sleep(time.Millisecond) // let the receiver's queues drain
				}
			}
			if got := received(t, cb); got < test.min || got > test.max {
				t.Errorf("%d %% loss: %d of 200 arrived", test.percent, got)
			}
			must(cb.Write([]byte("x")))(t)
			if got := received(t, ca); got != 1 {
				t.Errorf("%d %% loss the other way: %d of 1 arrived", test.percent, got)
			}
		}
		check(t, l.Lossy(0, 0))
	})
}

func TestCutPorts(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		victim, witness := connect(t, a, b, address(l, b)), connect(t, b, a, address(l, a))
		ports := []uint16{port(t, victim.client.LocalAddr()), port(t, victim.client.LocalAddr())}
		for p := uint16(1); len(ports) < 20000; p++ { // below the ephemeral ports
			ports = append(ports, p)
		}
		check(t, l.CutPorts(ports...))
		check(t, l.CutPorts(ports[:10]...)) // again is no error
		must(victim.client.Write([]byte("hello")))(t)
		must(victim.server.Write([]byte("hello")))(t)
		silent(t, victim.server)
		silent(t, victim.client)
		crosses(t, witness.client, witness.server)
		crosses(t, witness.server, witness.client)
		check(t, l.HealPorts(ports[0], 3))
		check(t, victim.server.SetReadDeadline(time.Now().Add(patient)))
		must(victim.server.Read(make([]byte, 5)))(t)
		check(t, l.HealPorts())
		check(t, l.HealPorts())
		if len(l.ports) != 0 {
			t.Errorf("%d ports still cut", len(l.ports))
		}
	})
}

func TestLinkDown(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	check(t, a.RouteVia(l))
	name, _ := l.Interface(a)
	for range 2 {
		s := connect(t, a, b, l.IPv6(b))
		check(t, a.LinkDown(l))
		var carrier string
		var addrs []net.Addr
		check(t, a.Do(func() error {
			dev, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			if dev.Flags&net.FlagRunning != 0 || dev.Flags&net.FlagUp == 0 {
				carrier = dev.Flags.String()
			}
			addrs, err = dev.Addrs()
			return err
		}))
		if carrier != "" {
			t.Errorf("link down: %s", carrier)
		}
		if len(addrs) < 2 {
			t.Errorf("link down: addresses %v", addrs)
		}
		must(s.client.Write([]byte("hello")))(t)
		silent(t, s.server)
		check(t, a.LinkUp(l))
		check(t, s.server.SetReadDeadline(time.Now().Add(patient)))
		must(s.server.Read(make([]byte, 5)))(t)
		s = connect(t, b, a, l.IPv4(a))
		crosses(t, s.client, s.server)
	}
}

func TestReboot(t *testing.T) {
	t.Parallel()
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		defer cancel()
		rec := must(l.Record())(t)
		in, out := connect(t, a, b, address(l, b)), connect(t, b, a, address(l, a))
		waiting := must(a.Dial(ctx, "tcp", in.listener.Addr().String()))(t) // nobody accepts it
		crosses(t, in.client, in.server)
		time.Sleep(silence) // for the last acknowledgements to have passed
		before := len(rec.Segments())

		check(t, b.Reboot())
		for name, c := range map[string]net.Conn{"accepted": in.server, "dialled": out.client} {
			if err := readError(t, c); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("%s: %v, want ECONNABORTED", name, err)
			}
		}
		if _, err := in.listener.Accept(); err == nil {
			t.Error("listener still accepts")
		}
		silent(t, in.client)
		silent(t, out.server)
		silent(t, waiting)
		if got := rec.Segments()[before:]; len(got) != 0 {
			t.Errorf("the reboot was heard on the wire: %v", got)
		}

		for name, c := range map[string]net.Conn{"client": in.client, "server": out.server, "waiting": waiting} {
			must(c.Write([]byte("hello")))(t)
			if err := readError(t, c); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%s: %v, want ECONNRESET", name, err)
			}
		}
		rst := must(rec.Wait(ctx, func(s Segment) bool { return s.Flags.Has(wire.RST) }))(t)
		if rst.From != b {
			t.Errorf("RST: %v", rst)
		}
		again := must(b.Listen(ctx, "tcp", in.listener.Addr().String()))(t)
		check(t, again.Close())
		s := connect(t, a, b, address(l, b))
		crosses(t, s.client, s.server)
	})
}
