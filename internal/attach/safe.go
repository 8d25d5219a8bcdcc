package attach

import (
	"fmt"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// Wait says why the policy must not go on the connection as it is now, or "".
// When its probes have gone unanswered, the kernel's count of them stays
// (icsk_probes_out): at the next look, a whole idle time from now, a count
// already reached ends the connection without one more question, though the
// peer may answer again by then. At least two must be left.
func Wait(s *conn.Sock, p keepalive.Policy) string {
	if s.Probes > 0 && p.Probes > 0 && int(s.Probes)+2 > p.Probes {
		return fmt.Sprintf("%d of its probes are unanswered already, of %d that the policy allows", s.Probes, p.Probes)
	}
	return ""
}

// TimeoutWait says why a user timeout must not go on the connection as it is
// now, or "". Linux compares it with a time that may have begun long ago: the
// first retransmission (retransmits_timed_out), the first probe of a shut
// window (tcp_probe_timer), or the last segment received once a single probe
// is out (tcp_keepalive_timer). Each would make the next lost segment fatal.
func TimeoutWait(s *conn.Sock, p keepalive.Policy) string {
	heard, told := s.Heard()
	idle := p.Idle
	if idle <= 0 {
		idle = p.UserTimeout / 2
	}
	switch {
	case p.UserTimeout <= 0:
		return ""
	case !told || s.State != conn.Established && s.State != conn.CloseWait:
		return "the connection is not open"
	case s.Probes > 0:
		return "a probe is unanswered"
	case s.Timer == conn.TimerRetransmit && (s.Backoff > 0 || s.Retransmits > 0):
		return "data is being retransmitted"
	case s.Backoff > 0, s.Timer == conn.TimerPersist:
		return "the peer's window is shut"
	case heard >= min(idle, p.UserTimeout):
		return "the peer was not heard of for " + heard.Round(time.Millisecond).String()
	}
	return ""
}
