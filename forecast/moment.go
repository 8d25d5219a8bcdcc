package forecast

import "time"

// unheardAt is unheard with the phase of the ticks known. What the kernel does
// not tell is for how long the pending timer was armed, and so its level.
// After a probe it was an interval; else, unless TimerFor says it, every level
// that the timer can be in is tried.
func unheardAt(s Situation, in Input) Forecast {
	w := wheel{in.HZ}
	f := Forecast{Situation: s, GivesUp: true, Rule: KeepAlive, Errno: "ETIMEDOUT", HZ: w.hz, ArticleBound: articleBound(in)}
	if in.Policy.UserTimeout > 0 {
		f.Rule = UserTimeout
	}
	idle, interval := w.ticks(in.Policy.Idle), w.ticks(in.Policy.Interval)
	start := int64(in.Clock.Jiffies % (1 << 32))
	due := w.nearest(in.TimerIn)
	lowest, highest := level(due), level(max(idle, interval))
	switch {
	case in.TimerIn <= 0: // armed with the last segment, or to fire at once
		due = max(0, idle-w.nearest(in.Heard))
		lowest = level(min(due, 1) * idle)
		highest = lowest
	case in.TimerFor > 0:
		lowest = level(w.ticks(in.TimerFor))
		highest = lowest
	case in.Probes > 0 && due <= interval:
		lowest = inTimer(interval)
		highest = lowest
	}
	sum := summary{wheel: w, forecast: &f}
	for n := highest + 1; n > lowest; n-- {
		r := run{wheel: w, start: start, now: start, since: in.Clock.Since}
		in.keepAliveTimer(&r, fires(start+due, n-1))
		sum.add(&r)
		if n == highest+1 {
			f.Expected = f.Earliest
		}
	}
	return f
}

// keepAliveTimer is tcp_keepalive_timer from the expiry at the tick first.
func (in Input) keepAliveTimer(r *run, first int64) {
	p := in.Policy
	idle, interval, userTimeout := r.ticks(p.Idle), r.ticks(p.Interval), r.ticks(p.UserTimeout)
	heard := r.start - r.nearest(in.Heard)
	rule := KeepAlive
	if userTimeout > 0 {
		rule = UserTimeout
	}
	r.now, r.handling = first, true
	for out := in.Probes; ; {
		elapsed := r.now - heard
		switch {
		case elapsed < idle:
			r.arm(idle - elapsed)
			continue
		case userTimeout > 0 && elapsed >= userTimeout && out > 0, userTimeout == 0 && out >= p.Probes:
			r.dies(rule, "ETIMEDOUT")
			return
		}
		out++
		r.step(Probe, out)
		if out > maxProbes+in.Probes {
			// Only a user timeout is so long. Every interval takes as many
			// ticks as the last, up to the one before the end.
			each := fires(interval, inTimer(interval))
			r.now += max(0, (userTimeout-elapsed)/each-1) * each
		}
		r.arm(interval)
	}
}

// nearest is d in ticks; the kernel tells ticks in milliseconds, cut off.
func (w wheel) nearest(d time.Duration) int64 {
	return w.ticks(max(0, d-w.tick()/2))
}
