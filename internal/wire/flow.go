package wire

import (
	"bytes"
	"net/netip"
)

// key names a connection, whichever way a segment goes. IPv4 addresses are
// IPv4-mapped.
type key struct {
	low, high         [16]byte
	lowPort, highPort uint16
}

// keyOf gives the key and whether src is its high side.
func keyOf(src, dst netip.AddrPort) (k key, high bool) {
	a, b := src.Addr().As16(), dst.Addr().As16()
	switch order := bytes.Compare(a[:], b[:]); {
	case order < 0, order == 0 && src.Port() <= dst.Port():
		return key{a, b, src.Port(), dst.Port()}, false
	}
	return key{b, a, dst.Port(), src.Port()}, true
}

// addr is one side, as addresses are written.
func (k *key) addr(high bool) netip.AddrPort {
	if high {
		return netip.AddrPortFrom(netip.AddrFrom16(k.high).Unmap(), k.highPort)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(k.low).Unmap(), k.lowPort)
}

// flow is one connection.
type flow struct {
	key          key
	sides        [2]side // low, high
	older, newer uint32  // neighbours in the order of last use
	life         uint32  // tells this flow from earlier ones in its place
	skip         bool    // not selected
	reset        bool    // a RST ended it
}

// side is what one side sent, and what it waits for.
type side struct {
	seenAt    int64 // Unix nanoseconds, as the other times here; 0: never
	sentAt    int64 // new data, SYN or FIN
	probeAt   int64 // of the probe that waits for an answer; 0: none does
	lastProbe int64 // of the last one, answered or not
	quickAt   int64 // when a probe of this side was last answered
	guessAt   int64 // of a segment that may have been a probe: see Tracker.guess
	nxt       uint32
	una       uint32 // what the other side has acknowledged
	probeSeq  uint32
	guessSeq  uint32
	guessAck  uint32
	device    int32 // interface that this side's segments are taken from
	window    uint16
	probes    uint16 // since the other side was heard
	repeats   uint16 // retransmissions, likewise
	kind      Kind   // of the probe at lastProbe
	hasNxt    bool
	hasUna    bool
	hasWindow bool
}

// flows is a bounded table, the longest unused making room for new ones. Place
// 0 of list holds no flow: its neighbours are the ends of the order.
type flows struct {
	places map[key]uint32
	list   []flow
	lives  uint32
	max    int
	lost   uint64 // how many had to make room
}

func newFlows(most int) flows {
	return flows{places: map[key]uint32{}, list: make([]flow, 1), max: most}
}

// find gives the place of a flow, making a new one if need be.
func (t *flows) find(k key) (at uint32, fresh bool) {
	if at, ok := t.places[k]; ok {
		t.unlink(at)
		t.link(at)
		return at, false
	}
	if len(t.list)-1 < t.max {
		at = uint32(len(t.list))
		t.list = append(t.list, flow{})
	} else {
		at = t.list[0].newer // the oldest
		t.unlink(at)
		delete(t.places, t.list[at].key)
		t.lost++
	}
	t.lives++
	t.list[at] = flow{key: k, life: t.lives}
	t.places[k] = at
	t.link(at)
	return at, true
}

func (t *flows) unlink(at uint32) {
	f := &t.list[at]
	t.list[f.older].newer, t.list[f.newer].older = f.newer, f.older
}

// link makes a flow the newest.
func (t *flows) link(at uint32) {
	newest := t.list[0].older
	t.list[at].older, t.list[at].newer = newest, 0
	t.list[newest].newer, t.list[0].older = at, at
}
