// Package probe makes the kernel ask a peer now whether it is there, and puts
// everything back.
//
// The question is one zero-length segment with sequence number SND.UNA-1, the
// very segment a keepalive probe is. It is sent on a duplicate of the socket's
// descriptor (pidfd_getfd(2)) by setsockopt(TCP_REPAIR, 0), which runs
// tcp_send_window_probe in the kernel and changes nothing but SO_REUSEADDR;
// that is read first, journalled, and put back. Where this is refused, and in
// CLOSE-WAIT and FIN-WAIT-2, keepalive itself is made to fire at once and its
// options are put back. Whether an answer came shows in tcpi_segs_in.
//
// Linux 5.6 and later. Needs CAP_SYS_PTRACE for other users' processes and
// CAP_NET_ADMIN over the connection's network namespace for window probes;
// without the latter the keepalive way is used.
//
// [Asker.Rearm] takes the same way to sockets whose keepalive timer still runs
// by an earlier default of the host. It asks nothing.
//
// A question can end a connection: a peer that rebooted, or a box on the path
// that forgot the flow, answers with RST.
package probe

import (
	"deadpeer/internal/conn"
	"deadpeer/internal/held"
)

// Method is how a question is put.
type Method uint8

// The methods.
const (
	WindowProbe Method = iota // TCP_REPAIR off, for every state that may send
	Keepalive                 // the keepalive timer made to fire now
)

// MethodFor is the method for a connection in that state: a window probe
// sends nothing in CLOSE-WAIT and FIN-WAIT-2 (tcp_send_window_probe).
func MethodFor(s conn.State) Method {
	if s == conn.Established {
		return WindowProbe
	}
	return Keepalive
}

// Step names a point at which a kill -9 must leave nothing changed for good.
type Step string

// The steps, in the order they come.
const (
	StepJournalled Step = "journalled" // the original is on disk
	StepAsked      Step = "asked"      // the question is out, the socket is changed
	StepRestored   Step = "restored"   // everything is back, the journal does not know
	StepForgotten  Step = "forgotten"  // the journal knows
	StepOff        Step = "off"        // re-arming only, in place of asked: keepalive is off
)

// Refusal is why a connection could not be asked. The zero value means it was.
type Refusal uint8

// The refusals.
const (
	NotRefused Refusal = iota
	NoOwner
	Hidden
	NoRoute
	OwnerGone
	Reused
	MPTCPSocket
	Checkpoint
	NeedsPtrace
	NeedsNetAdmin
	NeedsKernel
	UserTimeoutSet
	ProbesExhausted
	ValuesOutOfRange
	InFlight
	TooFresh
	ChangedMeanwhile
	JournalFailed
	Failed
	Off
	OwnValue
	Probing
	refusalEnd
)

var refusalTexts = [refusalEnd]string{
	NotRefused:       "",
	NoOwner:          string(held.NoOwner),
	NoRoute:          "no route leads to the peer: our own side may be what is gone",
	Hidden:           string(held.Hidden),
	OwnerGone:        string(held.OwnerGone),
	Reused:           string(held.Reused),
	MPTCPSocket:      "a subflow of an MPTCP connection cannot be asked",
	Checkpoint:       "a checkpoint is being taken of it (TCP_REPAIR is on)",
	NeedsPtrace:      string(held.NeedsPtrace),
	NeedsNetAdmin:    "needs CAP_NET_ADMIN over its network namespace",
	NeedsKernel:      string(held.NeedsKernel),
	UserTimeoutSet:   "its user timeout makes keepalive questions unsafe",
	ProbesExhausted:  "one more keepalive probe could end it",
	ValuesOutOfRange: "its keepalive values could not be put back",
	InFlight:         "data is in flight, so keepalive is silent",
	TooFresh:         "heard less than a second ago",
	ChangedMeanwhile: "its program changed it meanwhile",
	JournalFailed:    "the journal could not be written",
	Failed:           "the kernel refused the question",
	Off:              "keepalive is off",
	OwnValue:         "it has an idle time of its own",
	Probing:          "it is being probed already",
}

// Error gives the refusal in words.
func (r Refusal) Error() string {
	if r >= refusalEnd {
		return "refused"
	}
	return refusalTexts[r]
}

// Privilege reports whether more privilege, or a newer kernel, would help.
func (r Refusal) Privilege() bool {
	return r == Hidden || r == NeedsPtrace || r == NeedsNetAdmin || r == NeedsKernel
}

// Passing reports whether the same question may succeed a little later.
func (r Refusal) Passing() bool { return r == TooFresh || r == InFlight || r == ChangedMeanwhile }
