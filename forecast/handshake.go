package forecast

import "time"

// handshake is a connection that does not come about.
type handshake struct{ Input }

const synTimeout = time.Second // TCP_TIMEOUT_INIT

// lives are what a connect can be; see flight.lives.
func (h handshake) lives() []func(*run) {
	if !h.found() {
		return []func(*run){h.connect}
	}
	return h.resumed(h.resume)
}

func (h handshake) connect(r *run) {
	failure := int64(-1)
	if h.NoNeighbour {
		failure = neighbourFailure(r)
	}
	r.arm(h.backedOff(r, 0))
	h.expire(r, 0, func() time.Duration { return r.elapsed() }, failure)
}

// expire is SYN-SENT from an expiry after n retransmissions on
// (tcp_write_timeout, tcp_retransmit_timer).
func (h handshake) expire(r *run, n int, elapsed func() time.Duration, failure int64) {
	limit, rule := h.model(r.wheel, h.SYNRetries, synTimeout), SYNRetries
	if h.Policy.UserTimeout > 0 {
		limit, rule = h.Policy.UserTimeout, UserTimeout
	}
	for ; ; n++ {
		if failure >= 0 && r.now >= failure {
			r.now = failure
			r.dies(NoNeighbour, "EHOSTUNREACH")
			return
		}
		if n >= h.SYNRetries+h.SYNLinear {
			r.dies(SYNRetries, "ETIMEDOUT")
			return
		}
		if n > 0 && r.reached(elapsed(), limit) {
			r.dies(rule, "ETIMEDOUT")
			return
		}
		r.step(SYN, n+1)
		r.arm(h.untilUserTimeout(r, h.backedOff(r, n+1), elapsed()))
	}
}

// backedOff is the timeout after n retransmissions, of which the first few
// are not backed off.
func (h handshake) backedOff(r *run, n int) int64 {
	return backedOff(r.ticks(synTimeout), max(0, n-h.SYNLinear), r.ticks(h.RTOMax))
}

// accept is SYN-RECEIVED (reqsk_timer_handler). Nobody is told.
func (h handshake) accept(r *run) {
	timeout := func(n int) int64 { return backedOff(r.ticks(synTimeout), n, r.ticks(h.RTOMax)) }
	n := h.Retransmits
	if h.found() {
		r.resume(h.TimerIn, inTimer(timeout(n)))
	} else {
		r.arm(timeout(0))
	}
	for ; n < h.SYNRetries; n++ {
		r.step(SYNACK, n+1)
		r.arm(timeout(n + 1))
	}
	r.dies(SYNACKRetries, "")
}
