package conn

import (
	"fmt"
	"net/netip"
)

// FutureRule is what can be told of a connection before it exists: its ports,
// both ends included, and the peer's address. The zero Prefix is any.
type FutureRule struct {
	LocalLow, LocalHigh uint16
	PeerLow, PeerHigh   uint16
	Peer                netip.Prefix
}

// maxFuture bounds the alternatives that a filter may be spread out to.
const maxFuture = 64

// Future gives the rules one of which must hold of a connection that is made
// from now on for the filter to select it, one at least. Owners, times, local
// addresses and the like cannot be told: the error names the part.
func (f *Filter) Future() ([]FutureRule, error) {
	if !f.base.Has(Established) {
		return nil, fmt.Errorf("%q leaves out established connections, which new ones are", f)
	}
	anything := []FutureRule{{LocalHigh: 65535, PeerHigh: 65535}}
	if f.expr == nil {
		return anything, nil
	}
	rules, err := future(f.expr, false)
	if err == nil && len(rules) == 0 {
		err = fmt.Errorf("%q: no connection can be like that", f)
	}
	return rules, err
}

func future(n node, not bool) (rules []FutureRule, err error) {
	kids, all, kidsNot := junction(n, not)
	if kids == nil {
		return futureLeaf(n, not)
	}
	for i, kid := range kids {
		more, err := future(kid, kidsNot)
		switch {
		case err != nil:
			return nil, err
		case i == 0:
			rules = more
		case all:
			rules = intersect(rules, more)
		default:
			rules = append(rules, more...)
		}
		if len(rules) > maxFuture {
			return nil, fmt.Errorf("it has more than %d alternatives", maxFuture)
		}
	}
	return rules, nil
}

func intersect(a, b []FutureRule) (both []FutureRule) {
	for _, x := range a {
		for _, y := range b {
			r := FutureRule{
				LocalLow: max(x.LocalLow, y.LocalLow), LocalHigh: min(x.LocalHigh, y.LocalHigh),
				PeerLow: max(x.PeerLow, y.PeerLow), PeerHigh: min(x.PeerHigh, y.PeerHigh), Peer: x.Peer,
			}
			switch {
			case !x.Peer.IsValid() || y.Peer.IsValid() && y.Peer.Overlaps(x.Peer) && y.Peer.Bits() > x.Peer.Bits():
				r.Peer = y.Peer
			case y.Peer.IsValid() && !y.Peer.Overlaps(x.Peer):
				continue
			}
			if r.LocalLow <= r.LocalHigh && r.PeerLow <= r.PeerHigh {
				both = append(both, r)
			}
		}
	}
	return both
}

func futureLeaf(n node, not bool) ([]FutureRule, error) {
	text := predText(n, "=")
	if not {
		text = "not " + text
	}
	refuse := fmt.Errorf("%q cannot be told of a connection before it exists: ports, the peer's address and the family can", text)
	rule := FutureRule{LocalHigh: 65535, PeerHigh: 65535}
	switch p := n.(type) {
	case statePred:
		if States(p).Has(Established) != not {
			return []FutureRule{rule}, nil
		}
	case hostPred:
		switch {
		case p.prefix.IsValid() && (!p.peer || not && p.port >= 0):
			return nil, refuse
		case p.prefix.IsValid() && not:
			return without(rule, p.prefix), nil
		}
		rule.Peer = p.prefix
		if p.port < 0 {
			return only(rule, !not), nil
		}
		return ports(rule, p.peer, opEQ, uint16(p.port), not), nil
	case numPred:
		switch p.field {
		case fieldSport, fieldDport:
			return ports(rule, p.field == fieldDport, p.op, uint16(p.value), not), nil
		case fieldFamily:
			rule.Peer = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			if (Family(p.value) == IPv4) != not {
				rule.Peer = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			}
			return []FutureRule{rule}, nil
		}
	}
	return nil, refuse
}

func only(r FutureRule, holds bool) []FutureRule {
	if holds {
		return []FutureRule{r}
	}
	return nil
}

// without is every peer outside the prefix: one prefix for each of its bits,
// and the other family.
func without(r FutureRule, p netip.Prefix) (rules []FutureRule) {
	other := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if p.Addr().Is6() {
		other = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	r.Peer = other
	rules = append(rules, r)
	for bit := range p.Bits() {
		b := p.Addr().AsSlice()
		b[bit/8] ^= 0x80 >> (bit % 8)
		addr, _ := netip.AddrFromSlice(b) // as long as it was
		r.Peer, _ = addr.Prefix(bit + 1)  // within its bits
		rules = append(rules, r)
	}
	return rules
}

func ports(r FutureRule, peer bool, o op, value uint16, not bool) (rules []FutureRule) {
	low, high := &r.LocalLow, &r.LocalHigh
	if peer {
		low, high = &r.PeerLow, &r.PeerHigh
	}
	if not {
		o = [...]op{opEQ: opNE, opNE: opEQ, opLT: opGE, opLE: opGT, opGT: opLE, opGE: opLT}[o]
	}
	add := func(from, to int) {
		if from = max(from, 1); from <= to { // no connection has port 0
			*low, *high = uint16(from), uint16(to)
			rules = append(rules, r)
		}
	}
	const last = 65535
	switch v := int(value); o {
	case opEQ:
		add(v, v)
	case opNE:
		add(0, v-1)
		add(v+1, last)
	case opLT:
		add(0, v-1)
	case opLE:
		add(0, v)
	case opGT:
		add(v+1, last)
	case opGE:
		add(v, last)
	}
	return rules
}
