package wire

import (
	"net/netip"
	"time"
)

// Defaults of TrackerOptions.
const (
	DefaultPatience = time.Second
	DefaultFlows    = 1 << 16
)

// Times that tell one kind of segment from another.
const (
	// Linux answers one segment outside the window per 500 ms and connection
	// (tcp_invalid_ratelimit).
	rateLimit = 500 * time.Millisecond
	// Segments sent this soon after others may have overtaken them on the way
	// to the capture.
	reordering = 3 * time.Millisecond
	// Identical segments without data, this far apart and with nothing between,
	// are probes: no keepalive interval is shorter.
	apart = 900 * time.Millisecond
	// A side's segments are taken from another interface once the one they
	// were on has been silent this long.
	moved = time.Second
)

// TrackerOptions configure a Tracker. Zero values mean the defaults.
type TrackerOptions struct {
	// Patience is how long a probe waits before it counts as unanswered. An
	// answer that comes later still is one.
	Patience time.Duration
	// Flows is how many connections are followed at a time; the longest unused
	// make room.
	Flows int
	// Select says whether a connection is to be followed; it is asked once
	// for each. nil follows all.
	Select func(a, b netip.AddrPort) bool
}

// Tracker makes events of segments. The segments of one network namespace, or
// of one file, belong into one Tracker, in the order of their capture. It is
// not safe for concurrent use, and allocates only for new connections.
type Tracker struct {
	options TrackerOptions
	flows   flows
	due     queue
	event   Event
}

// NewTracker gives a tracker that has seen nothing.
func NewTracker(o TrackerOptions) *Tracker {
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	if o.Flows <= 0 {
		o.Flows = DefaultFlows
	}
	return &Tracker{options: o, flows: newFlows(o.Flows)}
}

// Forgotten is how many connections made room for others while they were
// followed: if it is not 0, events may be missing.
func (t *Tracker) Forgotten() uint64 { return t.flows.lost }

// Feed takes the next segment and reports whether its connection is followed.
// The Event that emit gets is valid until it returns.
func (t *Tracker) Feed(s *Segment, emit func(*Event)) bool {
	t.Advance(s.Time, emit)
	k, high := keyOf(s.Src, s.Dst)
	at, fresh := t.flows.find(k)
	f := &t.flows.list[at]
	if fresh && t.options.Select != nil {
		f.skip = !t.options.Select(s.Src, s.Dst)
	}
	if f.skip {
		return false
	}
	step := step{t: t, f: f, at: at, high: high, s: s, now: s.Time.UnixNano(), emit: emit}
	step.x, step.y = &f.sides[0], &f.sides[1]
	if high {
		step.x, step.y = step.y, step.x
	}
	step.take()
	return true
}

// Advance tells the tracker what time it is, as segments do: probes that have
// waited long enough count as unanswered. Live, call it when no segment comes.
func (t *Tracker) Advance(now time.Time, emit func(*Event)) {
	for t.due.n > 0 {
		d := t.due.first()
		deadline := d.probeAt + int64(t.options.Patience)
		if deadline > now.UnixNano() {
			return
		}
		t.due.drop()
		f := &t.flows.list[d.flow]
		if f.life != d.life {
			continue
		}
		x := &f.sides[0]
		if d.high {
			x = &f.sides[1]
		}
		if x.probeAt == d.probeAt {
			t.unanswered(f, d.high, deadline, emit)
		}
	}
}

// unanswered books that the probe that waits has waited for nothing.
func (t *Tracker) unanswered(f *flow, high bool, at int64, emit func(*Event)) {
	x := &f.sides[0]
	if high {
		x = &f.sides[1]
	}
	sent := x.probeAt
	x.probeAt = 0
	t.event = Event{
		Kind: Unanswered, Time: time.Unix(0, at), Local: f.key.addr(high), Peer: f.key.addr(!high),
		N: int(x.probes), About: x.kind, Sent: time.Unix(0, sent),
		RateLimited: x.quickAt != 0 && sent-x.quickAt < int64(rateLimit),
	}
	emit(&t.event)
}

// deadline is a probe that may become unanswered.
type deadline struct {
	probeAt int64
	flow    uint32
	life    uint32
	high    bool
}

// queue is a ring: all probes have the same patience, so the first in is the
// first due.
type queue struct {
	ring  []deadline
	start int
	n     int
}

func (q *queue) first() *deadline { return &q.ring[q.start] }

func (q *queue) drop() {
	q.start = (q.start + 1) % len(q.ring)
	q.n--
}

func (q *queue) push(d deadline) {
	if q.n == len(q.ring) {
		ring := make([]deadline, max(64, 2*q.n))
		for i := range q.n {
			ring[i] = q.ring[(q.start+i)%len(q.ring)]
		}
		q.ring, q.start = ring, 0
	}
	q.ring[(q.start+q.n)%len(q.ring)] = d
	q.n++
}
