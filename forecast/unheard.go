package forecast

import (
	"sort"
	"time"
)

// chain is a timer armed for first ticks, and then by its own handler for
// each, over and over.
type chain struct {
	w     wheel
	first int64
	armed uint // the level of the first
	each  int64
}

type ticks struct{ lo, hi int64 }

// expiry is when the nth timer fires, n from 1, over all phases, in jiffies.
// Those after the first are exact as far as the tick they are armed at is on
// a boundary of their buckets, which the first has seen to if its buckets are
// no smaller.
func (c chain) expiry(n int64) ticks {
	t := ticks{c.first + 1, c.first + granule(c.armed)}
	if n == 1 {
		return t
	}
	bucket := inTimer(c.each)
	exact := fires(c.each, bucket)
	if bucket > c.armed {
		t.lo += c.each + granule(c.armed) - c.each%granule(c.armed)
		t.hi += c.each + granule(bucket) - c.each%granule(c.armed)
		n--
	}
	return ticks{t.lo + (n-1)*exact, t.hi + (n-1)*exact}
}

// from is when the nth fires, after a start of known phase.
func (c chain) from(start, n int64) int64 {
	bucket := inTimer(c.each)
	now := fires(start+c.first, c.armed)
	if n > 1 {
		now = fires(now+c.each, bucket) + (n-2)*fires(c.each, bucket)
	}
	return now - start
}

// unheard is an idle connection whose peer vanished (tcp_keepalive_timer).
func unheard(s Situation, in Input) Forecast {
	w := wheel{in.HZ}
	f := Forecast{Situation: s, Rule: Never, HZ: w.hz}
	switch {
	case !in.KeepAlive:
		return f
	case in.Clock.Jiffies != 0:
		return unheardAt(s, in)
	case in.Heard != 0 || in.TimerIn != 0 || in.Probes != 0:
		f = Idle(in)
		f.Situation = s
		return f
	}
	f.GivesUp, f.Rule, f.Errno = true, KeepAlive, "ETIMEDOUT"
	f.ArticleBound = articleBound(in)
	if in.Policy.UserTimeout > 0 {
		f.Rule = UserTimeout
	}
	// The timer may have been armed at the last segment, or earlier; then it
	// was armed again for what was left of the idle time, in any level.
	p := in.Policy
	userTimeout := w.ticks(p.UserTimeout)
	for armed := range level(w.ticks(p.Idle)) + 1 {
		c := chain{w, w.ticks(p.Idle), armed, w.ticks(p.Interval)}
		// A probe must be out before either rule ends it, if any is allowed.
		last := int64(p.Probes) + 1
		soonest := last
		if userTimeout > 0 {
			last = c.search(userTimeout, func(t ticks) int64 { return t.lo })
			soonest = c.search(userTimeout, func(t ticks) int64 { return t.hi })
		}
		end := span{w.time(c.expiry(soonest).lo - 1), w.time(c.expiry(last).hi)}
		if userTimeout > 0 {
			end.earliest = max(end.earliest, p.UserTimeout)
		}
		if armed == 0 {
			f.Earliest, f.Latest = end.earliest, end.latest
		}
		f.Earliest, f.Latest = min(f.Earliest, end.earliest), max(f.Latest, end.latest)
		for n := int64(1); n < last && n <= MaxSteps; n++ {
			e := c.expiry(n)
			step := Step{Probe, int(n), w.time(e.lo - 1), w.time(e.hi)}
			if int(n) > len(f.Steps) {
				f.Steps = append(f.Steps, step)
			}
			known := &f.Steps[n-1]
			known.Earliest, known.Latest = min(known.Earliest, step.Earliest), max(known.Latest, step.Latest)
		}
	}
	return f
}

// search is the first expiry after the first whose end is not below limit.
func (c chain) search(limit int64, end func(ticks) int64) int64 {
	most := limit/max(1, c.each) + 2
	return 2 + int64(sort.Search(int(most), func(i int) bool { return end(c.expiry(int64(i)+2)) >= limit }))
}

func articleBound(in Input) time.Duration {
	p := in.Policy
	return max(0, p.Idle+time.Duration(p.Probes+1)*p.Interval-in.Heard)
}

// rebooted is an idle connection whose first probe draws a RST.
func rebooted(in Input) Forecast {
	f := unheard(SituationRebooted, in)
	if len(f.Steps) == 0 {
		return f // not asked, or ended without a question
	}
	f.Steps = f.Steps[:1]
	f.Rule, f.Errno, f.ArticleBound = Reset, "ECONNRESET", 0
	f.Earliest, f.Latest = f.Steps[0].Earliest+in.RTT, f.Steps[0].Latest+in.RTT
	if f.Expected > 0 {
		f.Expected = f.Latest // the likeliest level is the highest
	}
	return f
}
