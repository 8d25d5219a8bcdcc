package forecast

import (
	"fmt"
	"strings"
)

// Situation names what a connection is in the middle of when its peer falls
// silent, and the moment that the times of the forecast count from.
type Situation string

// The situations. Times count from what is said in brackets.
const (
	SituationIdle            Situation = "idle"              // nothing in flight [last segment received]
	SituationInFlight        Situation = "in-flight"         // data not acknowledged [the write]
	SituationZeroWindow      Situation = "zero-window"       // data waits for a window, the peer vanishes [its vanishing]
	SituationZeroWindowAlive Situation = "zero-window-alive" // the peer answers, but opens no window [the window shut]
	SituationSynSent         Situation = "syn-sent"          // connect [the first SYN]
	SituationSynReceived     Situation = "syn-received"      // not yet accepted [the first SYN-ACK]
	SituationFinWait1        Situation = "fin-wait-1"        // our FIN not acknowledged [the FIN]
	SituationFinWait2        Situation = "fin-wait-2"        // our FIN acknowledged, the peer's never comes [the acknowledgement]
	SituationCloseWait       Situation = "close-wait"        // the peer's FIN came, ours is not sent [last segment received]
	SituationLastAck         Situation = "last-ack"          // then ours is not acknowledged [our FIN]
	SituationRebooted        Situation = "rebooted"          // idle, and the peer forgot the connection [last segment received]
	SituationMidProbeWrite   Situation = "mid-probe-write"   // keepalive is probing, and the program writes [the write]
	SituationARPFailing      Situation = "arp-failing"       // data written, the next hop not known and silent [the write]
)

// Situations lists all situations, in the order of the constants.
func Situations() []Situation {
	return []Situation{
		SituationIdle, SituationInFlight, SituationZeroWindow, SituationZeroWindowAlive, SituationSynSent,
		SituationSynReceived, SituationFinWait1, SituationFinWait2, SituationCloseWait, SituationLastAck,
		SituationRebooted, SituationMidProbeWrite, SituationARPFailing,
	}
}

// For forecasts a situation from its beginning. It returns an [*InputError]
// for an input that cannot be, and an error matching [errors.ErrUnsupported]
// for situations other than idle on systems other than Linux.
//
// A connection may be given as it is found in the middle; times count from now
// then. With nothing in flight (idle, close-wait, rebooted, fin-wait-2 with an
// owner) that is Heard, TimerIn and Probes, as with [Idle]. Where a
// retransmission, a window probe or the end of fin-wait-2 is waited for it is
// TimerIn, Retransmits, Backoff and Sent; when the first retransmission was
// made, which counts, the kernel does not tell, and the ends of the forecast
// are as far apart as it can have been. The neighbour counts as known then.
func For(s Situation, in Input) (Forecast, error) {
	f, err := forecast(s, in)
	if err != nil {
		return Forecast{}, fmt.Errorf("forecast %s: %w", s, err)
	}
	return f, nil
}

func forecast(s Situation, in Input) (Forecast, error) {
	if err := in.complete(s); err != nil {
		return Forecast{}, err
	}
	if in.OS != Linux {
		return documented(s, in)
	}
	if err := in.checkFound(s); err != nil {
		return Forecast{}, err
	}
	switch s {
	case SituationIdle, SituationCloseWait:
		return unheard(s, in), nil
	case SituationRebooted:
		return rebooted(in), nil
	case SituationInFlight, SituationMidProbeWrite:
		return over(s, in, flight{Input: in, what: Retransmission}.lives()...), nil
	case SituationFinWait1, SituationLastAck:
		return over(s, in, flight{Input: in, what: FIN, orphaned: in.Ownership != Held}.lives()...), nil
	case SituationFinWait2:
		if in.Ownership == Held {
			return unheard(s, in), nil
		}
		if in.found() {
			return over(s, in, finWait2Lives(in)...), nil
		}
		return finWait2(in), nil
	case SituationZeroWindow:
		return zeroWindow(in)
	case SituationZeroWindowAlive:
		return zeroWindowAlive(in), nil
	case SituationSynSent:
		return over(s, in, handshake{in}.lives()...), nil
	case SituationSynReceived:
		return over(s, in, handshake{in}.accept), nil
	case SituationARPFailing:
		return over(s, in, unreachable{in}.run), nil
	}
	var names []string
	for _, s := range Situations() {
		names = append(names, string(s))
	}
	return Forecast{}, &InputError{"situation", string(s), strings.Join(names, ", "), "give one of these"}
}
