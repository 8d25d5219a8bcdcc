package forecast

import "time"

// handshake is a connection that does not come about.
type handshake struct{ Input }

const synTimeout = time.Second // TCP_TIMEOUT_INIT

// connect is SYN-SENT (tcp_write_timeout, tcp_retransmit_timer).
func (h handshake) connect(r *run) {
	failure := int64(-1)
	if h.NoNeighbour {
		failure = neighbourFailure(r)
	}
	rto, most := r.ticks(synTimeout), r.ticks(h.RTOMax)
	limit, rule := h.model(r.wheel, h.SYNRetries, synTimeout), SYNRetries
	if h.Policy.UserTimeout > 0 {
		limit, rule = h.Policy.UserTimeout, UserTimeout
	}
	d := rto
	for n := 0; ; n++ {
		r.arm(d)
		if failure >= 0 && r.now >= failure {
			r.now = failure
			r.dies(NoNeighbour, "EHOSTUNREACH")
			return
		}
		if n >= h.SYNRetries+h.SYNLinear {
			r.dies(SYNRetries, "ETIMEDOUT")
			return
		}
		if n > 0 && r.reached(r.elapsed(), limit) {
			r.dies(rule, "ETIMEDOUT")
			return
		}
		r.step(SYN, n+1)
		if n+1 > h.SYNLinear {
			rto = min(2*rto, most)
		}
		d = h.untilUserTimeout(r, rto, r.elapsed())
	}
}

// accept is SYN-RECEIVED (reqsk_timer_handler). Nobody is told, and
// tcp_rto_max_ms has no say.
func (h handshake) accept(r *run) {
	for n := 0; ; n++ {
		r.arm(min(r.ticks(synTimeout)<<min(n, 20), r.ticks(defaultRTOMax)))
		if n >= h.SYNRetries {
			r.dies(SYNACKRetries, "")
			return
		}
		r.step(SYNACK, n+1)
	}
}
