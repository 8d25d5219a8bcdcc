package path

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestRoute(t *testing.T) {
	s := newScene(t)
	eth, side := uint32(s.eth.Attrs().Index), uint32(s.side.Attrs().Index)
	type test struct {
		name, peer string
		from       RouteKey
		want       Route
	}
	gw4, gw6 := s.uplink.IPv4(s.gateway), s.uplink.IPv6(s.gateway)
	own4, own6 := s.uplink.IPv4(s.host), s.uplink.IPv6(s.host)
	for _, r := range []*netlink.Route{
		{Dst: parseNet("198.51.100.1/32"), Type: unix.RTN_BLACKHOLE},
		{Dst: parseNet("198.51.100.2/32"), Type: unix.RTN_PROHIBIT},
		{Dst: parseNet("198.51.100.3/32"), Type: unix.RTN_UNREACHABLE},
		{Dst: parseNet("2001:db8:1::1/128"), Type: unix.RTN_BLACKHOLE},
		{Dst: parseNet("2001:db8:1::2/128"), Type: unix.RTN_PROHIBIT},
		{Dst: parseNet("2001:db8:1::3/128"), Type: unix.RTN_UNREACHABLE},
		{Dst: parseNet("198.51.100.6/32"), LinkIndex: int(eth), Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: gw6.AsSlice()}},
		{Table: 77, LinkIndex: int(side), Gw: s.sidelink.IPv4(s.elsewhere).AsSlice()},
		{Table: 77, LinkIndex: int(side), Gw: s.sidelink.IPv6(s.elsewhere).AsSlice()},
	} {
		s.ok(s.nl.RouteAdd(r))
	}
	for _, f := range families() {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Priority = f.version, 7, 77, 100
		s.ok(s.nl.RuleAdd(rule))
		rule = netlink.NewRule()
		rule.Family, rule.UIDRange, rule.Table, rule.Priority = f.version, netlink.NewRuleUIDRange(4711, 4711), 77, 101
		s.ok(s.nl.RuleAdd(rule))
		rule = netlink.NewRule()
		rule.Family, rule.IPProto, rule.Mark, rule.Type, rule.Priority = f.version, unix.IPPROTO_UDP, 8, unix.RTN_PROHIBIT, 102
		s.ok(s.nl.RuleAdd(rule))
	}
	virtual := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "virtual"}}
	s.ok(s.nl.LinkAdd(virtual)) // and left down, as kube-proxy leaves a dummy
	s.ok(s.nl.LinkSetARPOff(virtual))
	s.ok(s.nl.AddrAdd(virtual, &netlink.Addr{IPNet: parseNet("10.66.0.1/32")}))
	s.settle()
	s.eventually("take the address of the other interface in", func() bool { return s.route(s.sidelink.IPv6(s.host).String()).Local })
	tests := []test{
		{name: "gateway", peer: "192.0.2.9", want: Route{Hop: Hop{Interface: eth, Gateway: gw4}}},
		{name: "gateway", peer: "2001:db8::9", want: Route{Hop: Hop{Interface: eth, Gateway: gw6}}},
		{name: "mapped", peer: "::ffff:192.0.2.9", from: RouteKey{Local: netip.AddrFrom16(own4.As16())}, want: Route{Hop: Hop{Interface: eth, Gateway: gw4}}},
		{name: "own source", peer: "192.0.2.9", from: RouteKey{Local: own4}, want: Route{Hop: Hop{Interface: eth, Gateway: gw4}}},
		{name: "own source", peer: "2001:db8::9", from: RouteKey{Local: own6}, want: Route{Hop: Hop{Interface: eth, Gateway: gw6}}},
		{name: "own source, bound", peer: "2001:db8::9", from: RouteKey{Local: own6, Interface: eth}, want: Route{Hop: Hop{Interface: eth, Gateway: gw6}}},
		{name: "source elsewhere", peer: "192.0.2.9", from: RouteKey{Local: s.sidelink.IPv4(s.host)}, want: Route{Hop: Hop{Interface: eth, Gateway: gw4, Home: side}}},
		{name: "source elsewhere", peer: "2001:db8::9", from: RouteKey{Local: s.sidelink.IPv6(s.host)}, want: Route{Hop: Hop{Interface: eth, Gateway: gw6, Home: side}}},
		{name: "source elsewhere, bound", peer: "192.0.2.9", from: RouteKey{Local: s.sidelink.IPv4(s.host), Interface: eth}, want: Route{Hop: Hop{Interface: eth, Gateway: gw4}}},
		{name: "source elsewhere", peer: "10.0.0.9", from: RouteKey{Local: s.sidelink.IPv4(s.host)}, want: Route{Hop: Hop{Interface: eth}}},
		{name: "source nowhere", peer: "192.0.2.9", from: RouteKey{Local: netip.MustParseAddr("10.66.0.1")}, want: Route{Hop: Hop{Interface: eth, Gateway: gw4}}},
		{name: "strange source", peer: "192.0.2.9", from: RouteKey{Local: netip.MustParseAddr("192.0.2.1")}, want: Route{Missing: true}},
		{name: "strange source", peer: "2001:db8::9", from: RouteKey{Local: netip.MustParseAddr("2001:db8::1")}, want: Route{Missing: true}},
		{name: "on-link", peer: "10.0.0.9", want: Route{Hop: Hop{Interface: eth}}},
		{name: "on-link", peer: "fd00::9", want: Route{Hop: Hop{Interface: eth}}},
		{name: "the gateway itself", peer: gw4.String(), want: Route{Hop: Hop{Interface: eth}}},
		{name: "link-local", peer: "fe80::1%eth0", from: RouteKey{Interface: eth}, want: Route{Hop: Hop{Interface: eth}}},
		{name: "link-local elsewhere", peer: "fe80::1", from: RouteKey{Interface: side}, want: Route{Hop: Hop{Interface: side}}},
		{name: "marked", peer: "192.0.2.9", from: RouteKey{Mark: 7}, want: Route{Hop: Hop{Interface: side, Gateway: s.sidelink.IPv4(s.elsewhere)}}},
		{name: "marked", peer: "2001:db8::9", from: RouteKey{Mark: 7}, want: Route{Hop: Hop{Interface: side, Gateway: s.sidelink.IPv6(s.elsewhere)}}},
		{name: "of a user", peer: "192.0.2.9", from: RouteKey{UID: 4711}, want: Route{Hop: Hop{Interface: side, Gateway: s.sidelink.IPv4(s.elsewhere)}}},
		{name: "of a user", peer: "2001:db8::9", from: RouteKey{UID: 4711}, want: Route{Hop: Hop{Interface: side, Gateway: s.sidelink.IPv6(s.elsewhere)}}},
		{name: "not TCP", peer: "192.0.2.9", from: RouteKey{Mark: 8}, want: Route{Hop: Hop{Interface: eth, Gateway: gw4}}},
		{name: "not TCP", peer: "2001:db8::9", from: RouteKey{Mark: 8}, want: Route{Hop: Hop{Interface: eth, Gateway: gw6}}},
		{name: "via the other family", peer: "198.51.100.6", want: Route{Hop: Hop{Interface: eth, Gateway: gw6}}},
		{name: "blackhole", peer: "198.51.100.1", want: Route{Missing: true}},
		{name: "prohibit", peer: "198.51.100.2", want: Route{Missing: true}},
		{name: "unreachable", peer: "198.51.100.3", want: Route{Missing: true}},
		{name: "blackhole", peer: "2001:db8:1::1", want: Route{Missing: true}},
		{name: "prohibit", peer: "2001:db8:1::2", want: Route{Missing: true}},
		{name: "unreachable", peer: "2001:db8:1::3", want: Route{Missing: true}},
		{name: "no such interface", peer: "192.0.2.9", from: RouteKey{Interface: 4711}, want: Route{Missing: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.peer, func(t *testing.T) {
			for range 2 { // asked, and remembered
				if got, err := s.paths.Route(netip.MustParseAddr(tt.peer), tt.from); err != nil || got != tt.want {
					t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
				}
			}
		})
	}
	for _, own := range []netip.Addr{own4, own6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		if got, err := s.paths.Route(own, RouteKey{Local: own}); err != nil || !got.Local || got.Missing {
			t.Errorf("own address %s: %+v, %v", own, got, err)
		}
	}
	if _, err := s.paths.Route(netip.Addr{}, RouteKey{}); err == nil {
		t.Error("no address was accepted")
	}
}

// What is remembered follows the kernel.
func TestRouteFollows(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			s := newScene(t)
			first := s.route(f.far)
			if first.Missing || first.Hop.Interface != uint32(s.eth.Attrs().Index) {
				t.Fatalf("route at first: %+v", first)
			}
			key := RouteKey{Local: f.of(s.uplink, s.host)}
			s.eventually("see the same from there", func() bool { // the kernel may still be busy with the new address
				bound, err := s.paths.Route(netip.MustParseAddr(f.far), key)
				return err == nil && bound == first
			})
			other := &netlink.Route{Dst: parseNet(f.farNet), LinkIndex: s.side.Attrs().Index, Gw: f.of(s.sidelink, s.elsewhere).AsSlice()}
			s.ok(s.nl.RouteAdd(other))
			s.eventually("see the new route", func() bool {
				return s.route(f.far).Hop == Hop{Interface: uint32(s.side.Attrs().Index), Gateway: f.of(s.sidelink, s.elsewhere)}
			})
			s.ok(s.nl.RouteDel(other))
			s.eventually("see it go", func() bool { return s.route(f.far) == first })
			s.ok(s.nl.LinkSetDown(s.eth))
			s.eventually("miss the route", func() bool { return s.route(f.far).Missing })
			s.eventually("miss it from there", func() bool {
				r, err := s.paths.Route(netip.MustParseAddr(f.far), key)
				return err == nil && r.Missing
			})
		})
	}
}

// The address of a connection may go while a route to its peer stays.
func TestRouteMissesOwnAddress(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			s := newScene(t)
			own := netip.MustParseAddr(f.spare)
			addr := &netlink.Addr{IPNet: ipNet(own, own.BitLen()), Flags: unix.IFA_F_NODAD}
			s.ok(s.nl.AddrAdd(s.eth, addr))
			missing := func() bool {
				r, err := s.paths.Route(netip.MustParseAddr(f.far), RouteKey{Local: own})
				s.ok(err)
				return r.Missing
			}
			s.eventually("find the route", func() bool { return !missing() })
			s.ok(s.nl.AddrDel(s.eth, addr))
			s.eventually("miss the address", missing)
		})
	}
}

func TestRouteCacheIsBounded(t *testing.T) {
	p := &Paths{routes: map[key]Route{}}
	for i := range maxRoutes + 100 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		p.remember(key{peer: a}, Route{})
		if _, ok := p.routes[key{peer: a}]; !ok {
			t.Fatalf("route %d is not remembered", i)
		}
	}
	if len(p.routes) != maxRoutes {
		t.Errorf("%d routes are remembered", len(p.routes))
	}
}

func BenchmarkRoute(b *testing.B) {
	p := openHere(b)
	b.Run("distinct", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			if _, err := p.Route(netip.AddrFrom4([4]byte{127, byte(i >> 16), byte(i >> 8), byte(i)}), RouteKey{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Route(netip.AddrFrom4([4]byte{127, 0, 0, 1}), RouteKey{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGeneration(b *testing.B) {
	p := openHere(b)
	r, err := p.Route(netip.AddrFrom4([4]byte{127, 0, 0, 1}), RouteKey{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = p.Generation(r.Hop)
	}
}

func TestAskingDoesNotAllocate(t *testing.T) {
	p := openHere(t)
	k := key{peer: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	r, err := p.asker.route(k)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = p.asker.route(k) }); n != 0 {
		t.Errorf("%v allocations a route", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = p.Generation(r.Hop) }); n != 0 {
		t.Errorf("%v allocations a generation", n)
	}
}
