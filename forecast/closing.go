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
	d := in.FinTimeout
	if in.Linger2 > 0 {
		d = roundUp(in.Linger2, time.Second)
	}
	rto := w.ticks(in.RTO)
	least := rto<<2 - rto>>1
	ticks := max(w.ticks(d), least)
	c := chain{w: w, first: ticks, armed: level(ticks)}
	n := int64(1)
	if timeWait := w.ticks(time.Minute); ticks > timeWait {
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
