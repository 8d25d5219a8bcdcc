package forecast

import "time"

// unreachable is data written while the next hop is being asked for and does
// not answer. The segment waits in the neighbour's queue (net/core/neighbour.c)
// and is not sent again while it is there; when the neighbour fails, the
// host's own ICMP takes backoff back (tcp_ld_RTO_revert, RFC 6069) in IPv4.
type unreachable struct{ Input }

// neighbourFailure is when the neighbour that is asked from now on fails:
// mcast_solicit questions, retrans_time_ms apart.
func neighbourFailure(r *run) int64 {
	const questions = 3
	asking := *r
	for range questions {
		asking.arm(r.ticks(time.Second))
	}
	r.top = max(r.top, asking.top)
	r.decided.byAhead = r.decided.byAhead || asking.decided.byAhead
	return asking.now
}

func (u unreachable) run(r *run) {
	f := flight{Input: u.Input}
	base, most := r.ticks(u.RTO), r.ticks(u.RTOMax)
	var (
		failure  = neighbourFailure(r)
		queued   = true // the segment is with the neighbour
		lost     bool   // and was to be retransmitted since
		sent     = r.now
		stamp    = r.now // of the first attempt to retransmit
		attempts int
		failures int
		backoff  int
		rto      = base
		errno    = "ETIMEDOUT"
		timer    int64
	)
	if !u.NoLossProbe {
		probe := *r
		probe.arm(f.probeTimeout(r.wheel))
		timer = probe.now
		// Nothing is sent, and what is left until the timeout is waited for.
		probe.arm(max(1, sent+base-timer))
		timer = probe.now
	} else {
		timer = r.expiry(base)
	}
	// attempt is tcp_retransmit_timer. It tells whether the connection lives.
	attempt := func() bool {
		limit, rule := u.modelOrUserTimeout(r.wheel)
		if attempts > 0 && r.reached(r.time(r.now-stamp), limit) {
			r.dies(rule, errno)
			return false
		}
		attempts++
		if lost = queued; !queued {
			r.step(Retransmission, attempts)
			sent, queued = r.now, true
		}
		if attempts == 1 {
			stamp = sent
		}
		backoff++
		rto = min(2*rto, most)
		timer = r.expiry(u.untilUserTimeout(r, rto, r.time(r.now-stamp)))
		return true
	}
	// resend is what happens when the neighbour's queue gives the segment back
	// after an attempt in vain (tcp_tsq_handler, tcp_xmit_retransmit_queue).
	resend := func() {
		r.step(Retransmission, attempts)
		sent, queued, lost = r.now, true, false
		timer, failure = r.expiry(rto), neighbourFailure(r)
	}
	for {
		r.handling = true
		if timer <= failure || !queued {
			r.now = timer
			wasQueued := queued
			if !attempt() {
				return
			}
			if !wasQueued {
				failure = neighbourFailure(r)
			}
			continue
		}
		r.now = failure
		failures++
		r.step(NeighbourFails, failures)
		queued = false
		switch {
		case u.IPv6 || attempts == 0 || backoff == 0:
			if lost {
				resend()
			}
		default:
			backoff--
			rto = min(base<<min(backoff, 20), most)
			switch left := rto - (r.now - sent); {
			case left <= 0:
				if !attempt() {
					return
				}
				failure = neighbourFailure(r)
			case lost:
				resend()
			default:
				timer = r.expiry(left)
			}
		}
		errno = "EHOSTUNREACH"
	}
}

func (in Input) modelOrUserTimeout(w wheel) (time.Duration, Rule) {
	return flight{Input: in}.limit(w, 0)
}
