package wire

import "time"

// step is one segment on its way through a flow: x sent it, y is the other
// side.
type step struct {
	t    *Tracker
	f    *flow
	x, y *side
	s    *Segment
	emit func(*Event)
	now  int64
	at   uint32 // of the flow
	high bool   // x is the flow's high side
}

func (p *step) take() {
	if p.again() {
		return
	}
	switch {
	case p.s.Flags.Has(RST):
		p.rst()
		return
	case p.s.Flags.Has(SYN) && p.f.reset:
		p.f.reset = false
	}
	p.settle()
	p.answers()
	p.classify()
	p.x.window, p.x.hasWindow = p.s.Window, true
}

// again reports whether the segment is a copy, seen on another interface: a
// packet that passes a bridge, a VLAN or a tunnel is captured on each.
func (p *step) again() bool {
	x := p.x
	if x.seenAt != 0 && p.s.Interface != x.device && p.now-x.seenAt < int64(moved) {
		return true
	}
	x.device, x.seenAt = p.s.Interface, p.now
	return false
}

// tell emits an event of the side that sent the segment, or of the other one.
func (p *step) tell(kind Kind, ofSender bool, e Event) {
	local := p.high == ofSender
	e.Kind, e.Time = kind, p.s.Time
	e.Local, e.Peer = p.f.key.addr(local), p.f.key.addr(!local)
	p.t.event = e
	p.emit(&p.t.event)
}

// rst ends the connection.
func (p *step) rst() {
	if p.f.reset {
		return // the peer answers every further segment by one
	}
	p.f.reset = true
	x, y := p.x, p.y
	switch {
	case x.probes > 0 || x.repeats > 0:
		if x.probeAt != 0 {
			p.t.unanswered(p.f, p.high, p.now, p.emit)
		}
		p.tell(GiveUp, true, Event{N: int(max(x.probes, x.repeats)), About: x.asking()})
	case y.probes > 0:
		p.tell(Reset, true, Event{N: int(y.probes), About: y.kind, RTT: time.Duration(p.now - y.lastProbe), Sent: time.Unix(0, y.lastProbe)})
	default:
		p.tell(Reset, true, Event{})
	}
	device, seen := x.device, x.seenAt
	p.f.sides = [2]side{}
	x.device, x.seenAt = device, seen
}

// asking is what the side sent that waits for the other.
func (x *side) asking() Kind {
	if x.repeats >= x.probes {
		return Retransmission
	}
	return x.kind
}

// settle makes a probe of what y sent, now that x acknowledges one byte more
// than it held: only a probe is one behind.
func (p *step) settle() {
	y, s := p.y, p.s
	if y.guessAt != 0 && s.Flags.Has(ACK) && s.Ack == y.guessSeq+1 {
		p.guessed(y, !p.high)
	}
	y.guessAt = 0
}

// guessed books the segment that side remembered as the probe it was.
func (p *step) guessed(x *side, high bool) {
	at, seq := x.guessAt, x.guessSeq
	x.guessAt = 0
	x.una, x.hasUna = seq+1, true
	if !x.hasNxt || before(x.nxt, seq+1) {
		x.nxt, x.hasNxt = seq+1, true
	}
	p.probe(x, high, seq, at)
}

// answers books that x was heard by y.
func (p *step) answers() {
	y, s := p.y, p.s
	if y.probes > 0 || y.repeats > 0 {
		e := Event{N: int(max(y.probes, y.repeats)), About: y.asking()}
		pure := s.Payload == 0 && !s.Flags.Has(SYN) && !s.Flags.Has(FIN)
		if y.probes > 0 {
			e.Sent = time.Unix(0, y.lastProbe)
			if pure && s.Flags.Has(ACK) && s.Ack == y.probeSeq+1 {
				e.RTT = time.Duration(p.now - y.lastProbe)
				y.quickAt = p.now
			}
		}
		y.probeAt, y.probes, y.repeats = 0, 0, 0
		p.tell(Answer, false, e)
	}
	if s.Flags.Has(ACK) && (!y.hasUna || before(y.una, s.Ack)) {
		y.una, y.hasUna = s.Ack, true
		if !y.hasNxt || before(y.nxt, s.Ack) {
			y.nxt, y.hasNxt = s.Ack, true // what came before the capture
		}
	}
}

// classify tells what x sent.
func (p *step) classify() {
	x, y, s := p.x, p.y, p.s
	end := s.end()
	plain := s.Flags.Has(ACK) && !s.Flags.Has(SYN) && !s.Flags.Has(FIN) && s.Payload <= 1
	if plain && p.oneBehind() {
		p.probe(x, p.high, s.Seq, p.now)
		return
	}
	shut := y.hasWindow && y.window == 0
	if plain && shut && s.Payload == 1 && x.hasUna && s.Seq == x.una && x.hasNxt && !before(x.nxt, s.Seq) {
		// RFC 9293 section 3.8.6.1: a byte of new data, as BSD and Windows do.
		p.probe(x, p.high, s.Seq, p.now)
		return
	}
	switch {
	case end == s.Seq: // nothing that takes up sequence space
		if plain && !x.hasUna {
			p.guess()
		}
	case x.hasNxt && before(s.Seq, x.nxt) && !s.Flags.Has(SYN), x.hasNxt && s.Flags.Has(SYN) && end == x.nxt:
		x.guessAt = 0
		if p.now-x.sentAt >= int64(reordering) {
			x.repeats++
			p.tell(Retransmission, true, Event{N: int(x.repeats)})
		}
		if before(x.nxt, end) {
			x.nxt = end
		}
		return
	default:
		x.guessAt, x.sentAt = 0, p.now
	}
	if !x.hasNxt || before(x.nxt, end) || s.Flags.Has(SYN) {
		x.nxt, x.hasNxt = end, true
	}
}

// oneBehind reports whether the segment repeats the sequence number before the
// first that y has not acknowledged: a keepalive or window probe of Linux
// (tcp_xmit_probe_skb), or one with a garbage byte (RFC 1122 section 4.2.3.6).
func (p *step) oneBehind() bool {
	x, s := p.x, p.s
	if x.sentAt != 0 && p.now-x.sentAt < int64(reordering) {
		return false
	}
	switch {
	case x.hasUna:
		return s.Seq == x.una-1
	case x.hasNxt && s.Payload == 0:
		return s.Seq == x.nxt-1
	}
	return false
}

// guess remembers a segment that may be a probe, in a connection of which
// nothing is known yet. A second one like it, with nothing between, proves it,
// and so does an answer.
func (p *step) guess() {
	x, s := p.x, p.s
	same := x.guessAt != 0 && x.guessSeq == s.Seq && x.guessAck == s.Ack
	if same && p.now-x.guessAt >= int64(apart) {
		p.guessed(x, p.high)
		p.probe(x, p.high, s.Seq, p.now)
		return
	}
	if !same {
		x.guessSeq, x.guessAck, x.guessAt = s.Seq, s.Ack, p.now
	}
}

// probe books a probe that x sent.
func (p *step) probe(x *side, high bool, seq uint32, at int64) {
	y := &p.f.sides[0]
	if !high {
		y = &p.f.sides[1]
	}
	if x.probeAt != 0 {
		p.t.unanswered(p.f, high, at, p.emit)
	}
	kind := Probe
	if y.hasWindow && y.window == 0 {
		kind = WindowProbe
	}
	if x.probes > 0 && x.kind != kind {
		x.probes = 0
	}
	x.probes = min(x.probes, 1<<16-2) + 1
	x.kind, x.probeSeq, x.probeAt, x.lastProbe = kind, seq, at, at
	p.t.due.push(deadline{probeAt: at, flow: p.at, life: p.f.life, high: high})
	p.t.event = Event{
		Kind: kind, Time: time.Unix(0, at), Local: p.f.key.addr(high), Peer: p.f.key.addr(!high), N: int(x.probes),
	}
	p.emit(&p.t.event)
}
