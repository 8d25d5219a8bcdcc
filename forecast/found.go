package forecast

import (
	"errors"
	"fmt"
	"time"
)

// found tells whether the input is a connection in the middle, its
// retransmission or probe timer pending.
func (in Input) found() bool { return in.TimerIn > 0 }

// checkFound refuses what cannot be found in the middle of a situation, or
// cannot be forecast from there.
func (in Input) checkFound(s Situation) error {
	switch s {
	case SituationIdle, SituationCloseWait, SituationRebooted:
		return nil
	case SituationZeroWindowAlive, SituationARPFailing:
		if in.TimerIn != 0 {
			return &InputError{"timer", in.TimerIn.String(), "0", fmt.Sprintf("%s is forecast from its beginning only", s)}
		}
	}
	switch {
	case in.Retransmits+in.Backoff > 0 && !in.found():
		return &InputError{"timer", in.TimerIn.String(), "above 0 after a retransmission", "give when the pending timer is due"}
	case s != SituationZeroWindow && in.Backoff != 0 && in.Backoff != in.Retransmits:
		return fmt.Errorf("backoff %d after %d retransmissions: errors of the network have changed it: %w", in.Backoff, in.Retransmits, errors.ErrUnsupported)
	}
	return nil
}

// backedOff is a timeout of base ticks, doubled n times, at most most.
func backedOff(base int64, n int, most int64) int64 { return min(base<<min(n, 20), most) }

// resume goes to the expiry of the timer that is due in d and was put in the
// level. One that is due already goes off at the end of its bucket, or, where
// that is over, as soon as the processor has the time.
func (r *run) resume(d time.Duration, level uint) {
	r.now = fires(r.start+r.nearest(d), level)
	if r.decided.byBehind = r.nearest(d) == 0; r.behind {
		r.now = r.start
	}
	r.top = max(r.top, level)
	r.handling = true
	r.work++
}

// untouched is a flight of which nothing was sent again, or the tail-loss
// probe only. Which of the two timers is pending shows in the time that it
// was armed for, if at all.
func (f flight) untouched() (lives []func(*run)) {
	w := wheel{f.HZ}
	armed := w.nearest(f.Sent) + w.nearest(f.TimerIn)
	told := f.Sent > 0 && w.nearest(f.TimerIn) > 0
	const slop = 1 // a tick may have passed between two readings of the clock
	if pto := f.probeTimeout(w); !f.NoLossProbe && (!told || armed >= pto-slop && armed <= pto+slop) {
		lives = append(lives, func(r *run) {
			r.resume(f.TimerIn, level(pto))
			r.step(TailLossProbe, 1)
			r.arm(r.ticks(f.RTO))
			f.expire(r, 1, r.now)
		})
	}
	if rto := w.ticks(f.RTO); len(lives) == 0 || !told || armed >= rto-slop {
		lives = append(lives, func(r *run) {
			r.resume(f.TimerIn, level(rto))
			f.expire(r, 1, r.now)
		})
	}
	return lives
}

// which is one of the ways in which what is found can have come about.
type which struct {
	early bool // the clock was started as early as it can have been, else as late
	short bool // the pending timer was armed for what a user timeout left
}

// resumed are lives that differ in when the clock was started, which the
// kernel does not tell.
func (in Input) resumed(resume func(*run, which)) (lives []func(*run)) {
	ways := []which{{early: true}, {}}
	if in.Policy.UserTimeout > 0 {
		ways = append(ways, which{true, true}, which{false, true})
	}
	for _, w := range ways {
		lives = append(lives, func(r *run) { resume(r, w) })
	}
	return lives
}

// resume goes on with a flight that was retransmitted.
func (f flight) resume(r *run, w which) {
	k := f.Retransmits
	p := past{k: k, first: 1, sent: f.Sent, timeout: func(n int) int64 { return f.backedOff(r, n) }}
	p.estimated = p.timeout(k) >= r.ticks(f.RTOMax)
	first, armed := f.started(r, w, p)
	r.resume(f.TimerIn, inTimer(armed))
	f.expire(r, k+1, first)
}

// resume goes on with a connect.
func (h handshake) resume(r *run, w which) {
	k := h.Retransmits
	first, armed := h.started(r, w, past{k: k, timeout: func(n int) int64 { return h.backedOff(r, n) }})
	r.resume(h.TimerIn, inTimer(armed))
	h.expire(r, k, func() time.Duration { return r.time(r.now - first) }, -1)
}

// resume goes on with probes of a shut window.
func (p window) resume(r *run, w which) {
	k := p.Backoff
	base := r.ticks(max(p.RTO, minRTO))
	before := past{k: k, first: 1, timeout: func(n int) int64 { return p.when(r, base, n) }}
	before.lag = int64(p.RTT/r.tick()) + 1
	before.more = k >= p.Retries2
	first, armed := p.started(r, w, before)
	r.resume(p.TimerIn, inTimer(armed))
	if k == 0 {
		first = r.now
	}
	p.expire(r, p.Retransmits, k, first)
}

// past is what is known of a timer that is pending now, for the kth time
// after its first.
type past struct {
	k         int
	timeout   func(n int) int64 // ticks, the nth time
	first     int               // after which of them the clock was started
	sent      time.Duration     // since the last time, if not 0
	lag       int64             // by how many ticks later each may have been armed
	estimated bool              // the timeouts are
	more      bool              // there may have been more than k
}

// since is how long before the kth time the clock was started.
func (p past) since(k int) (t ticks) {
	for n := p.first; n < k; n++ {
		d := p.timeout(n)
		t = ticks{t.lo + d + 1, t.hi + d + granule(inTimer(d)) + p.lag}
	}
	return t
}

// started works out when the clock was started that decides on the end, and
// for how many ticks the pending timer was armed. The pending timer tells when
// it went off last, and the timeouts, each late by up to its granule, when
// before.
func (in Input) started(r *run, w which, p past) (at, armed int64) {
	due := r.start + r.nearest(in.TimerIn)
	armed = p.timeout(p.k)
	last := ticks{due - armed, due - armed}
	sent := r.start - r.nearest(p.sent)
	overdue := int64(0) // by up to that, less one
	if r.nearest(in.TimerIn) == 0 {
		overdue = granule(inTimer(armed))
	}
	userTimeout := r.ticks(in.Policy.UserTimeout)
	const slop = 1 // a tick may have passed between two readings of the clock
	switch {
	case userTimeout == 0:
	case p.sent > 0:
		w.short = sent > last.hi+slop
	default:
		since := p.since(p.k)
		left := ticks{userTimeout - since.hi, userTimeout - since.lo}
		switch {
		case left.lo > armed && !p.more:
			w.short = false
		case left.hi < armed:
			w.short = true
		}
		if w.short {
			armed = max(1, left.hi, due-r.start)
		}
		if w.short && w.early {
			armed = max(1, left.lo, due-r.start)
		}
	}
	switch {
	case w.short:
		if p.sent > 0 {
			armed = max(1, due-sent)
		}
		began := ticks{due - userTimeout - overdue - slop, due - userTimeout + slop}
		if w.early {
			return began.lo, armed
		}
		return min(began.hi, r.start), armed
	case overdue > 0 && p.sent > 0:
		last = ticks{sent, sent}
	case overdue > 0:
		last.lo -= overdue - 1
	}
	began := last
	var vague int64
	for n := p.k - 1; n >= p.first; n-- {
		d := p.timeout(n)
		if p.estimated && d < p.timeout(p.k) {
			vague += d / 8
		}
		began = ticks{began.lo - d - granule(inTimer(d)) - p.lag, began.hi - d - 1}
		if n > 0 && p.lag == 0 {
			began = began.onBuckets(inTimer(p.timeout(n - 1)))
		}
	}
	if p.more {
		began.lo = due - userTimeout
	}
	if w.early {
		return began.lo - vague, armed
	}
	return min(began.hi+vague, last.hi), armed
}

// onBuckets leaves of t what can be an expiry in the level, unless a busy
// host was late.
func (t ticks) onBuckets(level uint) ticks {
	g := granule(level)
	on := ticks{(t.lo + g - 1) / g * g, t.hi / g * g}
	if on.lo > on.hi || t.lo < 0 {
		return t
	}
	return on
}
