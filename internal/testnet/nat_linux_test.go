package testnet

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRouter(t *testing.T) {
	t.Parallel()
	n := newNet(t)
	a, r, b := must(n.Host("a"))(t), must(n.Router("r"))(t), must(n.Host("b"))(t)
	near, far := must(n.Connect(a, r))(t), must(n.Connect(r, b))(t)
	check(t, errors.Join(a.RouteVia(near), b.RouteVia(far), b.RouteVia(far)))
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		s := connect(t, a, b, address(far, b))
		crosses(t, s.client, s.server)
		check(t, far.Cut())
		must(s.client.Write([]byte("hello")))(t)
		silent(t, s.server)
		check(t, far.Heal())
	})
}

func TestNAT(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		opts NATOptions
		// What a segment of a forgotten connection from the inside, or from
		// the outside, leads to.
		inside, outside func(t *testing.T, from, to net.Conn)
	}{
		{"drop", NATOptions{OnForgotten: Drop}, vanishes, vanishes},
		{"reset", NATOptions{OnForgotten: Reset}, resets, resets},
		{"loose drop", NATOptions{Loose: true}, crosses, vanishes},
		{"loose reset", NATOptions{Loose: true, OnForgotten: Reset}, crosses, resets},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := newNet(t)
			inside, outside := must(n.Host("inside"))(t), must(n.Host("outside"))(t)
			nat := must(n.NAT(inside, outside, test.opts))(t)
			families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
				s := connect(t, inside, outside, address(nat.Outside, outside))
				crosses(t, s.client, s.server)
				crosses(t, s.server, s.client)
				if got := must(netip.ParseAddrPort(s.server.RemoteAddr().String()))(t).Addr(); got != address(nat.Outside, nat.Router) {
					t.Errorf("the outside sees %v", got)
				}
				idle := connect(t, inside, outside, address(nat.Outside, outside))
				time.Sleep(50 * time.Millisecond) // for the last acknowledgements to have passed
				check(t, nat.Forget())
				test.outside(t, s.server, s.client)
				test.inside(t, idle.client, idle.server)
				s = connect(t, inside, outside, address(nat.Outside, outside))
				crosses(t, s.client, s.server)
			})
		})
	}
}

func vanishes(t *testing.T, from, to net.Conn) {
	t.Helper()
	must(from.Write([]byte("hello")))(t)
	silent(t, to)
	silent(t, from)
}

func resets(t *testing.T, from, to net.Conn) {
	t.Helper()
	must(from.Write([]byte("hello")))(t)
	if err := readError(t, from); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want ECONNRESET", err)
	}
	silent(t, to)
}

func TestNATExpires(t *testing.T) {
	t.Parallel()
	n := newNet(t)
	inside, outside := must(n.Host("inside"))(t), must(n.Host("outside"))(t)
	nat := must(n.NAT(inside, outside, NATOptions{Established: 1500 * time.Millisecond}))(t) // rounded up to 2 s
	s := connect(t, inside, outside, nat.Outside.IPv4(outside))
	crosses(t, s.client, s.server)
	crosses(t, s.server, s.client)
	time.Sleep(2500 * time.Millisecond)
	vanishes(t, s.server, s.client)
	vanishes(t, s.client, s.server)
}
