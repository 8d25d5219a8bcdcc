package path

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hops are those that a test of generations looks at.
type hops struct{ far, near Hop }

func (s *scene) hops(f ipFamily) hops {
	h := hops{far: s.route(f.far).Hop, near: s.route(f.near).Hop}
	if !h.far.Gateway.IsValid() || h.near.Gateway.IsValid() || h.far.Interface != h.near.Interface {
		s.Fatalf("hops %+v", h)
	}
	return h
}

// rises expects what happens in act to raise the generation of the hop.
func (s *scene) rises(what string, h Hop, act func()) {
	s.Helper()
	before := s.paths.Generation(h)
	act()
	s.eventually("notice: "+what, func() bool { return s.paths.Generation(h) > before })
	s.settle()
}

// stays expects what happens in act to leave the generations alone.
func (s *scene) stays(what string, h hops, act func()) {
	s.Helper()
	s.settle()
	far, near := s.paths.Generation(h.far), s.paths.Generation(h.near)
	act()
	s.settle()
	if now := s.paths.Generation(h.far); now != far {
		s.Errorf("%s raised the gateway hop's generation from %d to %d", what, far, now)
	}
	if now := s.paths.Generation(h.near); now != near {
		s.Errorf("%s raised the link's generation from %d to %d", what, near, now)
	}
}

func (s *scene) neighbour(a netip.Addr, mac string, state int) {
	s.Helper()
	n := &netlink.Neigh{LinkIndex: s.eth.Attrs().Index, Family: int(family(a)), IP: a.AsSlice(), State: state}
	if mac != "" {
		hw, err := net.ParseMAC(mac)
		s.ok(err)
		n.HardwareAddr = hw
	}
	s.ok(s.nl.NeighSet(n))
}

func TestGenerationRises(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			s := newScene(t)
			h := s.hops(f)
			s.settle()
			for _, hop := range []Hop{h.far, h.near} {
				s.rises("carrier lost", hop, func() { s.ok(s.host.LinkDown(s.uplink)) })
				s.rises("carrier back", hop, func() { s.ok(s.host.LinkUp(s.uplink)) })
				addr := &netlink.Addr{IPNet: ipNet(netip.MustParseAddr(f.spare), f.bits), Flags: unix.IFA_F_NODAD}
				s.rises("address added", hop, func() { s.ok(s.nl.AddrAdd(s.eth, addr)) })
				s.rises("address removed", hop, func() { s.ok(s.nl.AddrDel(s.eth, addr)) })
				route := &netlink.Route{Dst: parseNet(f.farNet), LinkIndex: s.eth.Attrs().Index, Gw: f.of(s.uplink, s.gateway).AsSlice(), Priority: 5}
				s.rises("route added", hop, func() { s.ok(s.nl.RouteAdd(route)) })
				s.rises("route removed", hop, func() { s.ok(s.nl.RouteDel(route)) })
				gw := h.far.Gateway
				s.neighbour(gw, "02:00:00:00:00:01", netlink.NUD_REACHABLE)
				s.rises("gateway's link-layer address changed", hop, func() { s.neighbour(gw, "02:00:00:00:00:02", netlink.NUD_REACHABLE) })
				s.neighbour(gw, "", netlink.NUD_FAILED)
				s.rises("gateway back from failed", hop, func() { s.neighbour(gw, "02:00:00:00:00:02", netlink.NUD_REACHABLE) })
				bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br9"}}
				s.ok(s.nl.LinkAdd(bridge))
				s.rises("enslaved", hop, func() { s.ok(s.nl.LinkSetMaster(s.eth, bridge)) })
				s.rises("freed", hop, func() { s.ok(s.nl.LinkSetNoMaster(s.eth)) })
				s.ok(s.nl.LinkDel(bridge))
				s.rises("own link-layer address", hop, func() { s.ok(s.nl.LinkSetHardwareAddr(s.eth, net.HardwareAddr{2, 0, 0, 0, 9, byte(hop.Interface)})) })
				s.ok(s.nl.LinkSetHardwareAddr(s.eth, s.eth.Attrs().HardwareAddr))
			}
			peer := netip.MustParseAddr(f.near)
			s.neighbour(peer, "02:00:00:00:00:03", netlink.NUD_REACHABLE)
			s.rises("peer's link-layer address changed", h.near, func() { s.neighbour(peer, "02:00:00:00:00:04", netlink.NUD_REACHABLE) })

			// A route elsewhere takes a peer over.
			host, err := netip.MustParseAddr(f.far).Prefix(len(net.IP(netip.MustParseAddr(f.far).AsSlice())) * 8)
			s.ok(err)
			over := &netlink.Route{Dst: parseNet(host.String()), LinkIndex: s.side.Attrs().Index}
			s.rises("peer routed elsewhere", h.far, func() { s.ok(s.nl.RouteAdd(over)) })
			s.ok(s.nl.RouteDel(over))
			s.eventually("see the route back", func() bool { return s.route(f.far).Hop == h.far })

			s.ok(s.nl.RouteAdd(&netlink.Route{Table: 77, Dst: parseNet(f.farNet), LinkIndex: s.side.Attrs().Index}))
			rule := netlink.NewRule()
			rule.Family, rule.Table, rule.Priority = f.version, 77, 100
			s.rises("rule sends the peer elsewhere", h.far, func() { s.ok(s.nl.RuleAdd(rule)) })
			s.ok(s.nl.RuleDel(rule))
			s.eventually("see the route back", func() bool { return s.route(f.far).Hop == h.far })

			s.rises("down", h.far, func() { s.ok(s.nl.LinkSetDown(s.eth)) })
			s.rises("up", h.far, func() { s.ok(s.nl.LinkSetUp(s.eth)) })
			s.rises("removed", h.near, func() { s.ok(s.nl.LinkDel(s.eth)) })
		})
	}
}

func TestGenerationStays(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			s := newScene(t)
			h := s.hops(f)
			own := &netlink.Addr{IPNet: ipNet(f.of(s.uplink, s.host), f.bits), Flags: unix.IFA_F_NODAD}
			for _, lft := range []int{7200, 3600} {
				own.ValidLft, own.PreferedLft = lft, lft
				s.stays("refreshed address", h, func() { s.ok(s.nl.AddrReplace(s.eth, own)) })
			}
			s.stays("refreshed route", h, func() { s.ok(s.host.RouteVia(s.uplink)) })
			s.stays("message for nothing", h, func() {
				s.ok(s.nl.LinkSetAlias(s.eth, "uplink"))
				s.ok(s.nl.LinkSetTxQLen(s.eth, 999))
			})

			gw, peer := h.far.Gateway, netip.MustParseAddr(f.near)
			for _, a := range []netip.Addr{gw, peer} {
				s.neighbour(a, "02:00:00:00:00:01", netlink.NUD_REACHABLE)
				s.stays("ageing", h, func() {
					for _, state := range []int{netlink.NUD_STALE, netlink.NUD_DELAY, netlink.NUD_PROBE, netlink.NUD_REACHABLE} {
						s.neighbour(a, "02:00:00:00:00:01", state)
					}
				})
			}
			s.stays("peer that fails", h, func() {
				s.neighbour(peer, "02:00:00:00:00:01", netlink.NUD_PROBE)
				s.neighbour(peer, "", netlink.NUD_INCOMPLETE)
				s.neighbour(peer, "", netlink.NUD_FAILED)
			})
			s.stays("new neighbour", h, func() { s.neighbour(netip.MustParseAddr(f.spare), "02:00:00:00:00:07", netlink.NUD_REACHABLE) })

			before := s.paths.Generation(h.far)
			s.neighbour(peer, "02:00:00:00:00:09", netlink.NUD_REACHABLE)
			s.settle()
			if s.paths.Generation(h.far) != before {
				t.Error("a neighbour raised the gateway hop's generation")
			}

			s.stays("route elsewhere", h, func() {
				s.ok(s.nl.RouteAdd(&netlink.Route{Dst: parseNet("203.0.113.0/24"), LinkIndex: s.side.Attrs().Index}))
				s.ok(s.nl.RouteAdd(&netlink.Route{Dst: parseNet("2001:db8:9::/64"), LinkIndex: s.side.Attrs().Index}))
			})
			s.stays("containers", h, func() { s.containers(3) })
			s.stays("link elsewhere", h, func() {
				s.ok(s.host.LinkDown(s.sidelink))
				s.ok(s.host.LinkUp(s.sidelink))
			})
		})
	}
}

// containers come and go, as Docker makes them.
func (s *scene) containers(n int) {
	s.Helper()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
	s.ok(s.nl.LinkAdd(bridge))
	s.ok(s.nl.AddrAdd(bridge, &netlink.Addr{IPNet: parseNet("172.17.0.1/16")}))
	s.ok(s.nl.LinkSetUp(bridge))
	for range n {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "veth9"})
		veth.PeerName, veth.PeerNamespace = "eth7", netlink.NsFd(s.elsewhere.NS().Fd())
		s.ok(s.nl.LinkAdd(veth))
		s.ok(s.nl.LinkSetMaster(veth, bridge))
		s.ok(s.nl.LinkSetUp(veth))
		s.in(s.elsewhere, func(nl *netlink.Handle) error {
			eth, err := nl.LinkByName("eth7")
			if err != nil {
				return err
			}
			if err := nl.AddrAdd(eth, &netlink.Addr{IPNet: parseNet("172.17.0.2/16")}); err != nil {
				return err
			}
			return nl.LinkSetUp(eth)
		})
		s.ok(s.nl.NeighSet(&netlink.Neigh{LinkIndex: bridge.Index, Family: netlink.FAMILY_V4, IP: net.IPv4(172, 17, 0, 2), State: netlink.NUD_REACHABLE, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}}))
		s.ok(s.nl.LinkDel(veth))
	}
	s.ok(s.nl.LinkDel(bridge))
}

func TestGenerationRisesWhenNotificationsAreLost(t *testing.T) {
	s := newScene(t)
	h := s.hops(families()[0])
	s.settle()
	s.ok(s.paths.watcher.raw.Control(func(fd uintptr) {
		s.ok(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
	}))
	before := s.paths.Generation(h.far)
	s.paths.mu.Lock() // the watcher cannot go on
	for i := range 200 {
		if err := s.nl.LinkSetAlias(s.side, string(rune('a'+i%26))); err != nil {
			s.paths.mu.Unlock()
			t.Fatal(err)
		}
	}
	err := s.nl.LinkSetDown(s.side)
	s.paths.mu.Unlock()
	s.ok(err)
	s.eventually("notice the loss", func() bool { return s.paths.Generation(h.far) > before })
	s.eventually("learn what was lost", func() bool { return !s.paths.Health(Hop{Interface: uint32(s.side.Attrs().Index)}).Up })
	if r := s.route("192.0.2.9"); r.Hop != h.far {
		t.Errorf("route %+v, want %+v", r, h.far)
	}
}

// What the kernel tells before lookups see it is seen all the same. Here it
// tells nothing of the change itself, only before that something happened.
func TestLooksAgain(t *testing.T) {
	f := families()[0]
	s := newScene(t)
	h := s.hops(f)
	s.ok(s.host.LinkDown(s.uplink))
	linkdown := func(ignore string) {
		s.ok(s.host.SetSysctl("net.ipv4.conf."+s.eth.Attrs().Name+".ignore_routes_with_linkdown", ignore))
	}
	noticed := func(attempt byte) bool {
		linkdown("0")
		s.settle()
		s.eventually("see the route", func() bool { return s.route(f.far).Hop == h.far })
		before := s.paths.Generation(h.far)
		s.paths.mu.Lock()
		s.paths.world.pending.addPrefix(netip.PrefixFrom(netip.MustParseAddr(f.far), 32))
		s.paths.mu.Unlock()
		s.ok(s.nl.NeighSet(&netlink.Neigh{LinkIndex: s.side.Attrs().Index, IP: net.IPv4(192, 0, 2, attempt), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, attempt}}))
		s.eventually("look for the first time", func() bool {
			s.paths.mu.RLock()
			defer s.paths.mu.RUnlock()
			return s.paths.world.pending.empty()
		})
		time.Sleep(10 * time.Millisecond)
		if s.paths.Generation(h.far) != before {
			t.Fatal("the generation rose before anything changed")
		}
		linkdown("1")
		for end := time.Now().Add(2 * late); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if s.paths.Generation(h.far) > before {
				return true
			}
		}
		return false
	}
	for attempt := range byte(3) { // a machine that is busy for a second may miss the last look
		if noticed(1 + attempt) {
			return
		}
	}
	t.Error("it did not look again")
}
