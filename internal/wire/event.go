package wire

import (
	"net/netip"
	"time"
)

// Kind is what happened.
type Kind uint8

// The kinds. Events other than Reset are the prober's.
const (
	Probe          Kind = iota + 1 // a keepalive probe (RFC 1122 section 4.2.3.6)
	WindowProbe                    // the peer's window is shut: has it opened? (RFC 9293 section 3.8.6.1)
	Answer                         // anything from the peer after a probe or retransmission
	Unanswered                     // nothing for the tracker's patience, or until the next probe
	Retransmission                 // data, SYN or FIN again
	Reset                          // RST from either side of a connection that was not being given up
	GiveUp                         // RST of a side whose last probes or retransmissions went unanswered
)

var kindNames = [...]string{
	Probe: "probe", WindowProbe: "window_probe", Answer: "answer", Unanswered: "unanswered",
	Retransmission: "retransmission", Reset: "reset", GiveUp: "give_up",
}

// String gives the kind's name as the JSON contract spells it.
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// Event is one thing that happened to a connection.
type Event struct {
	Kind Kind
	Time time.Time
	// Local is the side that probes or retransmits; of a Reset the one that
	// sent it.
	Local, Peer netip.AddrPort
	// N counts the probes, window probes or retransmissions since the peer was
	// last heard, this one included; of an Answer how many there had been.
	N int
	// RTT is from the probe to its Answer, or to the Reset it drew. 0 when the
	// answer cannot be told apart from what the peer would have sent anyway.
	RTT time.Duration
	// About is what an Answer, Unanswered, Reset or GiveUp is about: Probe,
	// WindowProbe or Retransmission, 0 for a Reset out of the blue.
	About Kind
	// Sent is when the probe was sent that the event is about.
	Sent time.Time
	// RateLimited says of an Unanswered that the peer may have been silent
	// only because it had answered less than 500 ms before (tcp_invalid_ratelimit).
	RateLimited bool
}
