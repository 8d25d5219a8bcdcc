package path

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"
)

// world is what is known of a namespace, and when each part of it last changed
// in a way that may have spoilt a question. Moments are readings of clock,
// which every change moves on, so that the latest of several is their maximum.
type world struct {
	clock    uint64
	all      uint64 // when everything may have changed
	removed  uint64 // when an interface was last removed
	links    map[uint32]*link
	rerouted map[Hop]uint64        // when the route of a peer last left the hop
	homes    map[netip.Addr]uint32 // the interface of each address; of several, the last to get it
	pending  changes               // routes to ask for again
}

// link is an interface.
type link struct {
	name       string
	flags      uint32 // IFF_…
	operstate  uint8
	carrier    bool
	changes    uint32 // of carrier, as the kernel counts them: a flap too short to see shows
	master     uint32
	lladdr     []byte
	addrs      map[netip.Prefix]struct{}
	neighbours map[netip.Addr]*neighbour
	sweepAt    int // number of neighbours at which to forget the removed

	changed          uint64 // the interface, its addresses or routes
	portChanged      uint64 // the carrier of a port of this bridge, bond or team
	neighbourChanged uint64 // any of the neighbours
}

// neighbour is an entry of the ARP or neighbour discovery cache. It outlives
// its removal, so as to see it come back from the dead or with another
// link-layer address.
type neighbour struct {
	state   uint16 // NUD_…
	gone    bool
	lladdr  []byte
	changed uint64
}

const (
	nudDead  = unix.NUD_FAILED | unix.NUD_INCOMPLETE
	nudValid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE |
		unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
)

// minSweep is the number of neighbours of an interface up to which the removed
// are remembered.
const minSweep = 1024

func newWorld(clock uint64) *world {
	return &world{clock: clock, all: clock, links: map[uint32]*link{}, rerouted: map[Hop]uint64{}, homes: map[netip.Addr]uint32{}}
}

func (w *world) tick() uint64 {
	w.clock++
	return w.clock
}

func (w *world) generation(h Hop) uint64 {
	g := max(w.all, w.rerouted[h])
	if h.Home != 0 {
		if l := w.links[h.Home]; l != nil {
			g = max(g, l.changed)
		} else {
			g = max(g, w.removed)
		}
	}
	l := w.links[h.Interface]
	if l == nil {
		return max(g, w.removed)
	}
	g = max(g, l.changed)
	if !h.Gateway.IsValid() {
		return max(g, l.neighbourChanged)
	}
	// Behind a bridge the way to a gateway may lead over any port. Neighbours
	// on the bridge itself, often containers, come and go with their own port.
	g = max(g, l.portChanged)
	if n := l.neighbours[h.Gateway]; n != nil {
		g = max(g, n.changed)
	}
	return g
}

// home is the interface that has the address, 0 when that is out, or one over
// which nothing arrives: loopback, or a dummy, which may even be down.
func (w *world) home(a netip.Addr, out uint32) uint32 {
	index := w.homes[a]
	const virtual = unix.IFF_NOARP | unix.IFF_LOOPBACK
	if l := w.links[index]; l == nil || index == out || l.flags&virtual != 0 && l.flags&unix.IFF_POINTOPOINT == 0 {
		return 0
	}
	if l := w.links[out]; l != nil {
		for p := range l.addrs {
			if p.Addr() == a {
				return 0
			}
		}
	}
	return index
}

// apply takes one message, a notification or part of a dump. What makes no
// sense is passed over.
func (w *world) apply(m message) {
	switch m.kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		w.applyLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		w.applyAddr(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		w.applyNeighbour(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		w.applyRoute(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if len(m.data) > 0 {
			w.pending.addFamily(m.data[0])
		}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		w.pending.addFamily(unix.AF_INET)
		w.pending.addFamily(unix.AF_INET6)
	}
}

func (w *world) applyLink(m message) {
	// A bridge tells of its ports with a family of its own, also when they
	// leave it (br_fill_ifinfo).
	if len(m.data) < unix.SizeofIfInfomsg || m.data[0] != unix.AF_UNSPEC {
		return
	}
	index := binary.NativeEndian.Uint32(m.data[4:])
	old := w.links[index]
	if m.kind == unix.RTM_DELLINK {
		if old != nil {
			w.removed = w.tick()
			delete(w.links, index)
			maps.DeleteFunc(w.rerouted, func(h Hop, _ uint64) bool { return h.Interface == index })
			maps.DeleteFunc(w.homes, func(_ netip.Addr, home uint32) bool { return home == index })
			w.pending.addInterface(index)
		}
		return
	}
	l := &link{addrs: map[netip.Prefix]struct{}{}, neighbours: map[netip.Addr]*neighbour{}, sweepAt: minSweep}
	if old != nil {
		*l = *old // messages of wireless drivers carry next to nothing
	}
	l.flags = binary.NativeEndian.Uint32(m.data[8:])
	l.carrier = l.flags&unix.IFF_LOWER_UP != 0
	l.master = 0
	wireless, peersToTell := false, false
	for kind, v := range attributes(m.data[unix.SizeofIfInfomsg:]) {
		switch n, ok := uint32Of(v); {
		case kind == unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(v)
		case kind == unix.IFLA_ADDRESS:
			l.lladdr = bytes.Clone(v)
		case kind == unix.IFLA_OPERSTATE && len(v) > 0:
			l.operstate = v[0]
		case kind == unix.IFLA_CARRIER && len(v) > 0:
			l.carrier = v[0] != 0
		case kind == unix.IFLA_CARRIER_CHANGES && ok:
			l.changes = n
		case kind == unix.IFLA_MASTER && ok:
			l.master = n
		case kind == unix.IFLA_WIRELESS:
			wireless = true
		case kind == unix.IFLA_EVENT && ok:
			peersToTell = n == eventBondingFailover || n == eventNotifyPeers
		}
	}
	if old == nil {
		l.changed = w.tick()
		w.links[index] = l
		return
	}
	if wireless {
		l.master = old.master
	}
	const state = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP
	switched := (l.flags^old.flags)&state != 0 || l.carrier != old.carrier ||
		l.operstate != old.operstate || l.changes != old.changes
	if switched || l.master != old.master || peersToTell || !bytes.Equal(l.lladdr, old.lladdr) {
		l.changed = w.tick()
	}
	if switched {
		// IPv4 drops and revives routes with the state of their interface
		// and tells nobody (fib_sync_down_dev, fib_sync_up).
		w.pending.addInterface(index)
		if l.master == 0 && old.master == 0 {
			w.pending.addFamily(unix.AF_INET)
			w.pending.addFamily(unix.AF_INET6)
		} else if master := w.links[l.master]; master != nil && l.master == old.master {
			master.portChanged = w.tick()
		}
	}
	*old = *l
}

// Events of enum ifla_event (linux/if_link.h) after which neighbours must
// learn another way to us.
const (
	eventBondingFailover = 3
	eventNotifyPeers     = 4
)

func (w *world) applyAddr(m message) {
	if len(m.data) < unix.SizeofIfAddrmsg {
		return
	}
	index := binary.NativeEndian.Uint32(m.data[4:])
	l := w.links[index]
	var addr, local netip.Addr
	for kind, v := range attributes(m.data[unix.SizeofIfAddrmsg:]) {
		if a, ok := addrOf(m.data[0], v); ok {
			switch kind {
			case unix.IFA_ADDRESS: // of the far end, if point-to-point
				addr = a
			case unix.IFA_LOCAL:
				local = a
			}
		}
	}
	if local.IsValid() {
		addr = local
	}
	prefix := netip.PrefixFrom(addr, int(m.data[1]))
	if l == nil || !prefix.IsValid() {
		return
	}
	_, known := l.addrs[prefix]
	switch isNew := m.kind == unix.RTM_NEWADDR; {
	case isNew == known:
		return // refreshed, or removed before we knew it
	case isNew:
		l.addrs[prefix] = struct{}{}
		w.homes[addr] = index
	default:
		delete(l.addrs, prefix)
		if w.homes[addr] == index {
			delete(w.homes, addr)
		}
		if addr.Is4() {
			// Routes with this source go too, untold (fib_sync_down_addr).
			w.pending.addFamily(unix.AF_INET)
		}
	}
	l.changed = w.tick()
	w.pending.addPrefix(netip.PrefixFrom(addr, addr.BitLen()))
}

func (w *world) applyRoute(m message) {
	if len(m.data) < unix.SizeofRtMsg || m.data[0] != unix.AF_INET && m.data[0] != unix.AF_INET6 {
		return
	}
	if binary.NativeEndian.Uint32(m.data[8:])&unix.RTM_F_CLONED != 0 {
		return // what was learnt of one peer, such as a path MTU
	}
	// A route replaced by its like, as a client of DHCP or router
	// advertisements does all day, changes nothing; by another, the peers'
	// routes come out differently.
	refresh := m.kind == unix.RTM_NEWROUTE && m.flags&unix.NLM_F_REPLACE != 0
	changed := func(index uint32) {
		if l := w.links[index]; l != nil && !refresh {
			l.changed = w.tick()
		}
	}
	var dst netip.Addr
	for kind, v := range attributes(m.data[unix.SizeofRtMsg:]) {
		switch n, ok := uint32Of(v); {
		case kind == unix.RTA_DST:
			dst, _ = addrOf(m.data[0], v)
		case kind == unix.RTA_OIF && ok:
			changed(n)
		case kind == unix.RTA_MULTIPATH:
			for n := range nexthops(v) {
				changed(n)
			}
		}
	}
	if prefix, err := dst.Prefix(int(m.data[1])); err == nil && prefix.IsValid() && prefix.Bits() > 0 {
		w.pending.addPrefix(prefix)
	} else {
		w.pending.addFamily(m.data[0])
	}
}

func (w *world) applyNeighbour(m message) {
	if len(m.data) < unix.SizeofNdMsg || m.data[10]&unix.NTF_PROXY != 0 {
		return
	}
	l := w.links[binary.NativeEndian.Uint32(m.data[4:])]
	state := binary.NativeEndian.Uint16(m.data[8:])
	var addr netip.Addr
	var lladdr []byte
	for kind, v := range attributes(m.data[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST: // a bridge's forwarding entries have none of these families
			addr, _ = addrOf(m.data[0], v)
		case unix.NDA_LLADDR:
			lladdr = v
		}
	}
	if l == nil || !addr.IsValid() {
		return
	}
	n := l.neighbours[addr]
	if m.kind == unix.RTM_DELNEIGH {
		if n != nil {
			n.gone = true
		}
		return
	}
	if n == nil {
		l.sweep()
		l.neighbours[addr] = &neighbour{state: state, lladdr: bytes.Clone(lladdr)}
		return
	}
	moved := len(lladdr) > 0 && len(n.lladdr) > 0 && !bytes.Equal(lladdr, n.lladdr)
	if moved || n.state&nudDead != 0 && state&nudValid != 0 {
		n.changed = w.tick()
		l.neighbourChanged = n.changed
	}
	n.state, n.gone = state, false
	if len(lladdr) > 0 {
		n.lladdr = append(n.lladdr[:0], lladdr...)
	}
}

// sweep forgets removed neighbours once there are many. One that changed is
// kept: without it the generation of its hop would fall.
func (l *link) sweep() {
	if len(l.neighbours) < l.sweepAt {
		return
	}
	maps.DeleteFunc(l.neighbours, func(_ netip.Addr, n *neighbour) bool { return n.gone && n.changed == 0 })
	l.sweepAt = max(minSweep, 2*len(l.neighbours))
}
