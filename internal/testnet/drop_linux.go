package testnet

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Cut drops TCP, UDP and ICMP echo both ways from the moment it returns.
// What has passed the wire before, up to then, may still arrive.
func (l *Link) Cut() error { return l.setCut(true, true) }

// CutOneWay drops TCP, UDP and ICMP echo that from sends, and lets through
// what the other host sends, whatever was cut before.
func (l *Link) CutOneWay(from *Host) error {
	s, err := l.side(from)
	if err != nil {
		return fmt.Errorf("cut link: %w", err)
	}
	return l.setCut(s == 0, s == 1)
}

// Heal undoes [Link.Cut] and [Link.CutOneWay]; loss and cut ports stay.
func (l *Link) Heal() error { return l.setCut(false, false) }

func (l *Link) setCut(fromA, fromB bool) error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.cut = [2]bool{fromA, fromB}
	return l.program()
}

// Lossy drops that percentage (0 to 100) of TCP, UDP and ICMP echo packets at
// random, each on its own; 0, 0 ends it. The first host given to Connect is a.
// The kernel may hand over several segments as one packet (GSO).
func (l *Link) Lossy(aToB, bToA float64) error {
	for _, p := range []float64{aToB, bToA} {
		if !(p >= 0 && p <= 100) { // so written that NaN is refused
			return fmt.Errorf("make link lossy: %v percent", p)
		}
	}
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.loss = [2]float64{aToB, bToA}
	return l.program()
}

// CutPorts drops, both ways, TCP packets from or to one of the ports:
// selected connections die while others live. Ports add up over calls.
func (l *Link) CutPorts(ports ...uint16) error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	return l.changePorts(ports, true)
}

// HealPorts undoes CutPorts for the ports, for all of them when none is given.
func (l *Link) HealPorts(ports ...uint16) error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if len(ports) == 0 {
		for p := range l.ports {
			ports = append(ports, p)
		}
	}
	return l.changePorts(ports, false)
}

// changePorts makes the ports members of the set, or takes them out. One
// message holds a thousand (its attribute is limited to 64 KB), one batch
// eight messages (the socket's send buffer is limited to 208 KB by default).
func (l *Link) changePorts(ports []uint16, cut bool) error {
	const perMessage, perBatch = 1000, 8000
	ports = slices.Clone(ports)
	slices.Sort(ports)
	ports = slices.DeleteFunc(slices.Compact(ports), func(p uint16) bool { return l.ports[p] == cut })
	change := l.net.nft.SetDeleteElements
	if cut {
		change = l.net.nft.SetAddElements
	}
	for batch := range slices.Chunk(ports, perBatch) {
		for chunk := range slices.Chunk(batch, perMessage) {
			elements := make([]nftables.SetElement, 0, len(chunk))
			for _, p := range chunk {
				elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
			}
			if err := change(l.set, elements); err != nil {
				return fmt.Errorf("change cut ports: %w", err)
			}
		}
		if err := l.net.flush(); err != nil {
			return fmt.Errorf("change cut ports: %w", err)
		}
		for _, p := range batch {
			if cut {
				l.ports[p] = true
			} else {
				delete(l.ports, p)
			}
		}
	}
	return nil
}

// program replaces the rules on both ports in one transaction.
func (l *Link) program() error {
	for s, e := range l.ends {
		l.net.nft.FlushChain(e.chain)
		for _, exprs := range l.rules(s) {
			l.net.nft.AddRule(&nftables.Rule{Table: l.net.table, Chain: e.chain, Exprs: exprs})
		}
	}
	if err := l.net.flush(); err != nil {
		return fmt.Errorf("program link: %w", err)
	}
	return nil
}

func (l *Link) rules(s int) (rules [][]expr.Any) {
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	for _, match := range traffic() {
		switch {
		case l.cut[s]:
			rules = append(rules, append(match, drop))
		case l.loss[s] > 0:
			const parts = 1_000_000
			rules = append(rules, append(match,
				&expr.Numgen{Register: 1, Modulus: parts, Type: unix.NFT_NG_RANDOM},
				// Numbers are compared as bytes, so the first must be the highest.
				&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(l.loss[s] / 100 * parts))},
				drop))
		}
	}
	for _, offset := range []uint32{0, 2} { // source port, destination port
		rules = append(rules, append(protocol(unix.IPPROTO_TCP),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			&expr.Lookup{SourceRegister: 1, SetName: l.set.Name, SetID: l.set.ID},
			drop))
	}
	return rules
}

// traffic matches what a link drops: everything programs send to each other
// and ping, but nothing that neighbours need of each other.
func traffic() [][]expr.Any {
	matches := [][]expr.Any{protocol(unix.IPPROTO_TCP), protocol(unix.IPPROTO_UDP)}
	for _, echo := range []struct{ proto, kind byte }{
		{unix.IPPROTO_ICMP, 0}, {unix.IPPROTO_ICMP, 8}, // RFC 792
		{unix.IPPROTO_ICMPV6, 128}, {unix.IPPROTO_ICMPV6, 129}, // RFC 4443 section 4
	} {
		matches = append(matches, append(protocol(echo.proto),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{echo.kind}}))
	}
	return matches
}

// protocol matches IPv4 and IPv6 packets of a transport protocol; other
// packets, such as ARP, have none and match nothing.
func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}
