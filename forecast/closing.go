package forecast

import "time"

// finWait2 is FIN-WAIT-2 after close(2) (tcp_close, tcp_fin_time,
// tcp_time_wait).
func finWait2(in Input) Forecast {
	w := wheel{in.HZ}
	f := Forecast{Situation: SituationFinWait2, GivesUp: true, Rule: FinTimeout, HZ: w.hz}
	if in.Linger2 < 0 {
		return f // closed with a RST
	}
	ticks, least := in.finTime(w)
	c := chain{w: w, first: ticks, armed: level(ticks)}
	n := int64(1)
	if timeWait := w.ticks(timeWaitLen); ticks > timeWait {
		// What is above a TIME-WAIT is waited for twice, and nothing else.
		c.first = ticks - timeWait
		c.armed = level(c.first)
		c.each = max(c.first, least)
		n = 2
	}
	if in.Clock.Jiffies != 0 {
		at := c.from(int64(in.Clock.Jiffies%(1<<32)), n)
		f.Expected = w.time(at) - in.Clock.Since
		f.Earliest, f.Latest = f.Expected, f.Expected
		return f
	}
	e := c.expiry(n)
	f.Earliest, f.Latest = w.time(e.lo-1), w.time(e.hi)
	return f
}

const timeWaitLen = time.Minute // TCP_TIMEWAIT_LEN

// finTime is for how many ticks FIN-WAIT-2 lasts, and the least it does.
func (in Input) finTime(w wheel) (long, least int64) {
	d := in.FinTimeout
	if in.Linger2 > 0 {
		d = roundUp(in.Linger2, time.Second)
	}
	rto := w.ticks(in.RTO)
	least = rto<<2 - rto>>1
	return max(w.ticks(d), least), least
}

// finWait2Lives are the ends of a FIN-WAIT-2 found in the middle. If it lasts
// for longer than a TIME-WAIT, the pending timer can be the first or the
// second of two.
func finWait2Lives(in Input) (lives []func(*run)) {
	w := wheel{in.HZ}
	long, least := in.finTime(w)
	first := long - w.ticks(timeWaitLen)
	second := long
	if first > 0 {
		second = max(first, least)
	}
	lives = append(lives, func(r *run) {
		r.resume(in.TimerIn, level(second))
		r.dies(FinTimeout, "")
	})
	if first > 0 {
		lives = append(lives, func(r *run) {
			r.resume(in.TimerIn, level(first))
			r.arm(second)
			r.dies(FinTimeout, "")
		})
	}
	return lives
}
