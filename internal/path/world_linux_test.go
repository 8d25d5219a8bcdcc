package path

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Messages as the kernel would send them.

func linkMessage(kind uint16, index, flags uint32, attrs ...[]byte) message {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	return message{kind: kind, data: join(b, attrs)}
}

func neighbourMessage(kind uint16, index uint32, state uint16, addr string, lladdr ...byte) message {
	a := netip.MustParseAddr(addr)
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family(a)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint16(b[8:], state)
	b = appendAddr(b, unix.NDA_DST, a)
	if lladdr != nil {
		b = append(b, attr(unix.NDA_LLADDR, lladdr...)...)
	}
	return message{kind: kind, data: b}
}

func routeMessage(kind, flags uint16, dst string, attrs ...[]byte) message {
	p := netip.MustParsePrefix(dst)
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = family(p.Addr()), byte(p.Bits())
	return message{kind: kind, flags: flags, data: join(appendAddr(b, unix.RTA_DST, p.Addr()), attrs)}
}

func addrMessage(kind uint16, index uint32, prefix string) message {
	p := netip.MustParsePrefix(prefix)
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family(p.Addr()), byte(p.Bits())
	binary.NativeEndian.PutUint32(b[4:], index)
	return message{kind: kind, data: appendAddr(b, unix.IFA_LOCAL, p.Addr())}
}

func attr(kind uint16, v ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(v)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), v...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func word(kind uint16, v uint32) []byte { return appendUint32(nil, kind, v) }

func join(b []byte, attrs [][]byte) []byte {
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

const (
	up   = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP
	down = unix.IFF_UP
)

// A bridge (1) with a port (2), and an interface elsewhere (3).
func testWorld() *world {
	w := newWorld(0)
	w.apply(linkMessage(unix.RTM_NEWLINK, 1, up, attr(unix.IFLA_IFNAME, []byte("br0\x00")...)))
	w.apply(linkMessage(unix.RTM_NEWLINK, 2, up, attr(unix.IFLA_IFNAME, []byte("eth0\x00")...), word(unix.IFLA_MASTER, 1)))
	w.apply(linkMessage(unix.RTM_NEWLINK, 3, up, attr(unix.IFLA_IFNAME, []byte("eth1\x00")...)))
	w.apply(addrMessage(unix.RTM_NEWADDR, 1, "10.0.0.1/24"))
	w.apply(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_STALE, "10.0.0.254", 2, 0, 0, 0, 0, 1))
	w.apply(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_FAILED, "10.0.0.9"))
	w.pending = changes{}
	return w
}

func TestWorld(t *testing.T) {
	far := Hop{Interface: 1, Gateway: netip.MustParseAddr("10.0.0.254")}
	near := Hop{Interface: 1}
	routed := func(index uint32) []byte { return word(unix.RTA_OIF, index) }
	nexthop := func(index uint32) []byte {
		return binary.NativeEndian.AppendUint32(append(binary.NativeEndian.AppendUint16(nil, 8), 0, 0), index)
	}
	tests := []struct {
		name      string
		m         message
		far, near bool // generations that rise
		pending   bool
	}{
		{"nothing new", linkMessage(unix.RTM_NEWLINK, 1, up), false, false, false},
		{"promiscuous", linkMessage(unix.RTM_NEWLINK, 1, up|unix.IFF_PROMISC), false, false, false},
		{"carrier lost", linkMessage(unix.RTM_NEWLINK, 1, down), true, true, true},
		{"carrier flapped", linkMessage(unix.RTM_NEWLINK, 1, up, word(unix.IFLA_CARRIER_CHANGES, 2)), true, true, true},
		{"operational state", linkMessage(unix.RTM_NEWLINK, 1, up, attr(unix.IFLA_OPERSTATE, 5)), true, true, true},
		{"enslaved", linkMessage(unix.RTM_NEWLINK, 1, up, word(unix.IFLA_MASTER, 3)), true, true, false},
		{"failed over", linkMessage(unix.RTM_NEWLINK, 1, up, word(unix.IFLA_EVENT, eventBondingFailover)), true, true, false},
		{"other event", linkMessage(unix.RTM_NEWLINK, 1, up, word(unix.IFLA_EVENT, 2)), false, false, false},
		{"port lost carrier", linkMessage(unix.RTM_NEWLINK, 2, down, word(unix.IFLA_MASTER, 1)), true, false, true},
		{"port left", linkMessage(unix.RTM_NEWLINK, 2, up), false, false, false},
		{"wireless news", linkMessage(unix.RTM_NEWLINK, 1, up, attr(unix.IFLA_WIRELESS, 1)), false, false, false},
		{"other interface", linkMessage(unix.RTM_NEWLINK, 3, down), false, false, true},
		{"new interface", linkMessage(unix.RTM_NEWLINK, 4, up), false, false, false},
		{"removed", linkMessage(unix.RTM_DELLINK, 1, 0), true, true, true},
		{"other removed", linkMessage(unix.RTM_DELLINK, 3, 0), false, false, true},
		{"address refreshed", addrMessage(unix.RTM_NEWADDR, 1, "10.0.0.1/24"), false, false, false},
		{"address added", addrMessage(unix.RTM_NEWADDR, 1, "10.0.0.2/24"), true, true, true},
		{"address removed", addrMessage(unix.RTM_DELADDR, 1, "10.0.0.1/24"), true, true, true},
		{"address elsewhere", addrMessage(unix.RTM_NEWADDR, 3, "10.9.0.1/24"), false, false, true},
		{"address nowhere", addrMessage(unix.RTM_NEWADDR, 9, "10.9.0.1/24"), false, false, false},
		{"route", routeMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, "10.9.0.0/16", routed(1)), true, true, true},
		{"route removed", routeMessage(unix.RTM_DELROUTE, 0, "10.9.0.0/16", routed(1)), true, true, true},
		{"route replaced", routeMessage(unix.RTM_NEWROUTE, unix.NLM_F_REPLACE, "10.9.0.0/16", routed(1)), false, false, true},
		{"route elsewhere", routeMessage(unix.RTM_NEWROUTE, 0, "10.9.0.0/16", routed(3)), false, false, true},
		{"multipath", routeMessage(unix.RTM_NEWROUTE, 0, "10.9.0.0/16", attr(unix.RTA_MULTIPATH, append(nexthop(3), nexthop(1)...)...)), true, true, true},
		{"rule", message{kind: unix.RTM_NEWRULE, data: []byte{unix.AF_INET}}, false, false, true},
		{"nexthop", message{kind: unix.RTM_NEWNEXTHOP}, false, false, true},
		{"gateway ages", neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_PROBE, far.Gateway.String(), 2, 0, 0, 0, 0, 1), false, false, false},
		{"gateway fails", neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_FAILED, far.Gateway.String()), false, false, false},
		{"gateway moves", neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_REACHABLE, far.Gateway.String(), 2, 0, 0, 0, 0, 2), true, true, false},
		{"gateway forgotten", neighbourMessage(unix.RTM_DELNEIGH, 1, unix.NUD_STALE, far.Gateway.String()), false, false, false},
		{"peer back", neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_REACHABLE, "10.0.0.9", 2, 0, 0, 0, 0, 9), false, true, false},
		{"peer still gone", neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_INCOMPLETE, "10.0.0.9"), false, false, false},
		{"neighbour elsewhere", neighbourMessage(unix.RTM_NEWNEIGH, 3, unix.NUD_REACHABLE, "10.0.0.254", 2, 0, 0, 0, 0, 2), false, false, false},
		{"cut short", message{kind: unix.RTM_NEWLINK, data: []byte{0, 0, 0}}, false, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := testWorld()
			f, n := w.generation(far), w.generation(near)
			w.apply(tt.m)
			if got := w.generation(far) > f; got != tt.far {
				t.Errorf("gateway hop's generation rose: %t", got)
			}
			if got := w.generation(near) > n; got != tt.near {
				t.Errorf("link's generation rose: %t", got)
			}
			if got := !w.pending.empty(); got != tt.pending {
				t.Errorf("routes to ask again: %t", got)
			}
		})
	}
}

func TestWorldSeesNeighboursComeBackAfterRemoval(t *testing.T) {
	hop := Hop{Interface: 1, Gateway: netip.MustParseAddr("10.0.0.254")}
	w := testWorld()
	w.apply(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_FAILED, "10.0.0.254"))
	w.apply(neighbourMessage(unix.RTM_DELNEIGH, 1, unix.NUD_FAILED, "10.0.0.254"))
	if h := w.health(hop); h.Gateway != GatewayUnconfirmed {
		t.Errorf("removed entry: %s", h.Gateway)
	}
	before := w.generation(hop)
	w.apply(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_REACHABLE, "10.0.0.254", 2, 0, 0, 0, 0, 1))
	if w.generation(hop) == before {
		t.Error("gateway that came back was not noticed")
	}
}

func TestWorldForgetsRemovedNeighbours(t *testing.T) {
	w := testWorld()
	hop := Hop{Interface: 1, Gateway: netip.MustParseAddr("10.0.0.254")}
	w.apply(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_STALE, "10.0.0.254", 2, 0, 0, 0, 0, 2))
	w.apply(neighbourMessage(unix.RTM_DELNEIGH, 1, unix.NUD_STALE, "10.0.0.254"))
	before := w.generation(hop)
	for i := range 10 * minSweep {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()
		w.apply(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_STALE, a, 2, 0, 0, 0, 0, 3))
		w.apply(neighbourMessage(unix.RTM_DELNEIGH, 1, unix.NUD_STALE, a))
	}
	if n := len(w.links[1].neighbours); n > 2*minSweep {
		t.Errorf("%d neighbours are kept", n)
	}
	if now := w.generation(hop); now != before {
		t.Errorf("generation went from %d to %d", before, now)
	}
}

func TestWorldBoundsReroutedHops(t *testing.T) {
	w := newWorld(0)
	last := uint64(0)
	for i := range 3 * maxRerouted {
		h := Hop{Interface: uint32(i)}
		w.leave(h)
		if g := w.generation(h); g <= last {
			t.Fatalf("generation %d after %d", g, last)
		} else {
			last = g
		}
	}
	if len(w.rerouted) > maxRerouted {
		t.Errorf("%d hops are kept", len(w.rerouted))
	}
}

func TestChanges(t *testing.T) {
	k := func(peer, local string) key {
		k := key{peer: netip.MustParseAddr(peer)}
		if local != "" {
			k.from.Local = netip.MustParseAddr(local)
		}
		return k
	}
	var c changes
	c.addPrefix(netip.MustParsePrefix("10.1.0.0/16"))
	c.addPrefix(netip.MustParsePrefix("fd00:1::/64"))
	c.addInterface(7)
	tests := []struct {
		k    key
		r    Route
		want bool
	}{
		{k("10.1.2.3", ""), Route{}, true},
		{k("10.2.2.3", ""), Route{}, false},
		{k("10.2.2.3", "10.1.0.1"), Route{}, true},
		{k("fd00:1::5", ""), Route{}, true},
		{k("fd00:2::5", ""), Route{}, false},
		{k("10.2.2.3", ""), Route{Hop: Hop{Interface: 7}}, true},
	}
	for _, tt := range tests {
		if got := c.affects(tt.k, tt.r); got != tt.want {
			t.Errorf("%v %v: %t", tt.k, tt.r, got)
		}
	}
	for i := range maxPrefixes + 1 {
		c.addPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 1}), 32))
	}
	if len(c.prefixes) > maxPrefixes || !c.affects(k("10.2.2.3", ""), Route{}) || c.affects(k("fd00:2::5", ""), Route{}) {
		t.Error("too many prefixes do not stand for their family")
	}
}

// Whatever comes, nothing panics and no generation falls.
func FuzzWorld(f *testing.F) {
	frame := func(list ...message) []byte {
		var all []byte
		for _, m := range list {
			all = append(all, finish(append(begin(nil, m.kind, m.flags, 1), m.data...))...)
		}
		return all
	}
	f.Add(frame(linkMessage(unix.RTM_DELLINK, 1, 0), linkMessage(unix.RTM_NEWLINK, 1, up)))
	f.Add(frame(neighbourMessage(unix.RTM_NEWNEIGH, 1, unix.NUD_REACHABLE, "10.0.0.9", 1, 2, 3, 4, 5, 6)))
	f.Add(frame(routeMessage(unix.RTM_NEWROUTE, 0, "10.9.0.0/16", attr(unix.RTA_MULTIPATH, 8, 0, 0, 0, 1, 0, 0, 0))))
	f.Add(frame(addrMessage(unix.RTM_DELADDR, 1, "10.0.0.1/24"), addrMessage(unix.RTM_NEWADDR, 1, "fd00::1/64")))
	f.Add([]byte{20, 0, 0, 0, unix.RTM_NEWRULE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		w := testWorld()
		hops := []Hop{{Interface: 1}, {Interface: 1, Gateway: netip.MustParseAddr("10.0.0.254")}, {Interface: 1, Gateway: netip.MustParseAddr("10.0.0.9")}, {Interface: 3}, {Interface: 9}, {Interface: 3, Gateway: netip.MustParseAddr("10.0.0.9"), Home: 1}}
		for len(b) > 0 {
			m, rest, ok := next(b)
			if !ok {
				return
			}
			b = rest
			var before [6]uint64
			for i, h := range hops {
				before[i] = w.generation(h)
			}
			w.apply(m)
			for i, h := range hops {
				if now := w.generation(h); now < before[i] {
					t.Fatalf("generation of %v fell from %d to %d", h, before[i], now)
				}
				_ = w.health(h).Reason()
			}
			w.pending.affects(key{peer: netip.MustParseAddr("10.0.0.9")}, Route{})
		}
	})
}

func FuzzParseRoute(f *testing.F) {
	f.Add(routeMessage(unix.RTM_NEWROUTE, 0, "10.9.0.0/16", word(unix.RTA_OIF, 1), attr(unix.RTA_GATEWAY, 10, 0, 0, 1)).data)
	f.Add(routeMessage(unix.RTM_NEWROUTE, 0, "10.9.0.0/16", attr(unix.RTA_VIA, append([]byte{unix.AF_INET6, 0}, make([]byte, 16)...)...)).data)
	f.Add(make([]byte, unix.SizeofRtMsg))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRoute(message{kind: unix.RTM_NEWROUTE, data: data})
		if err == nil && r.Missing && r != (Route{Missing: true}) {
			t.Fatalf("%+v", r)
		}
	})
}
