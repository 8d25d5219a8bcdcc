package forecast

import "time"

// flight is a segment that is never acknowledged (tcp_retransmit_timer), data
// or FIN.
type flight struct {
	Input
	what     string
	orphaned bool
}

// lives are what a flight can be: one from its beginning, or as found those
// that the kernel does not tell apart.
func (f flight) lives() []func(*run) {
	switch {
	case !f.found():
		return []func(*run){f.run}
	case f.Retransmits > 0:
		return f.resumed(f.resume)
	}
	return f.untouched()
}

func (f flight) run(r *run) {
	if !f.NoLossProbe {
		r.arm(f.probeTimeout(r.wheel))
		r.step(TailLossProbe, 1)
	}
	r.arm(r.ticks(f.RTO))
	f.expire(r, 1, r.now)
}

// expire goes on with the nth expiry. The count and the clock start with the
// first (retrans_stamp).
func (f flight) expire(r *run, n int, first int64) {
	for ; ; n++ {
		rto := f.backedOff(r, n-1)
		limit, rule := f.limit(r.wheel, rto)
		if n > 1 && r.reached(r.time(r.now-first), limit) {
			r.dies(rule, f.errno())
			return
		}
		r.step(f.what, n)
		r.arm(f.untilUserTimeout(r, f.backedOff(r, n), r.time(r.now-first)))
	}
}

// backedOff is the timeout after n retransmissions.
func (f flight) backedOff(r *run, n int) int64 {
	return backedOff(r.ticks(f.RTO), n, r.ticks(f.RTOMax))
}

// probeTimeout is the PTO of tcp_schedule_loss_probe.
func (f flight) probeTimeout(w wheel) int64 {
	const more = 2 * time.Millisecond // TCP_TIMEOUT_MIN_US
	d := 2*f.RTT + minRTO
	if f.Packets > 1 {
		d = 2*f.RTT + more
	}
	return min(w.ticks(d), w.ticks(f.RTO))
}

// errno is none where nobody is left to be told.
func (f flight) errno() string {
	if f.orphaned {
		return ""
	}
	return "ETIMEDOUT"
}

// limit is how long after the first retransmission the connection may last
// (tcp_write_timeout), with rto being backed off.
func (f flight) limit(w wheel, rto int64) (time.Duration, Rule) {
	switch {
	case f.Policy.UserTimeout > 0:
		return f.Policy.UserTimeout, UserTimeout
	case f.orphaned:
		return f.model(w, f.orphanRetries(rto < w.ticks(f.RTOMax)), minRTO), OrphanRetries
	}
	return f.model(w, f.Retries2, minRTO), Retries
}

// orphanRetries is tcp_orphan_retries: a peer counts as alive until backoff
// is at its limit.
func (in Input) orphanRetries(alive bool) int {
	if in.OrphanRetries == 0 && alive {
		return 8
	}
	return in.OrphanRetries
}

// model is tcp_model_timeout: the time that a number of retransmissions takes
// if the first comes after base, whatever it comes after here.
func (in Input) model(w wheel, retries int, base time.Duration) time.Duration {
	baseTicks := int64(base/time.Millisecond) * int64(w.hz) / 1000
	maxTicks := w.ticks(in.RTOMax)
	linear := 0
	for baseTicks<<(linear+1) <= maxTicks {
		linear++
	}
	n := min(retries, linear)
	d := (2<<n-1)*baseTicks + int64(retries-n)*maxTicks
	return roundUp(w.time(d), time.Millisecond)
}

// untilUserTimeout is d, or what is left of the user timeout if that is less
// (tcp_clamp_rto_to_user_timeout).
func (in Input) untilUserTimeout(r *run, d int64, elapsed time.Duration) int64 {
	if in.Policy.UserTimeout == 0 {
		return d
	}
	return min(d, max(1, r.ticks(roundUp(max(0, in.Policy.UserTimeout-elapsed), time.Millisecond))))
}
