package engine

import (
	"math"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/verdict"
)

// stamp is a moment of a run: tenths of a millisecond since it began to ask,
// good for 119 hours.
type stamp uint32

const stampUnit = 100 * time.Microsecond

func stampOf(d time.Duration) stamp { return stamp(d / stampUnit) }
func (s stamp) span() time.Duration { return time.Duration(s) * stampUnit }

// asking is what came of asking one connection.
type asking struct {
	base       uint32 // segments received before the first question
	first      stamp  // the first question of the present silence
	last       stamp  // the last question
	answer     stamp  // the last answer
	judged     stamp  // the last judgement
	answeredUS uint32 // how long the first answer took
	generation uint32 // of the path, when the present silence began
	chance     float32
	questions  uint16 // all of them
	unanswered uint16 // of the present silence, the outstanding one included
	group      uint16 // path, in inquiry.groups
	sweep      uint8  // the last sweep that saw the socket
	refusal    probe.Refusal
	protection protection
	verdict    conn.Verdict
	why        verdict.Why
	flags      flags
}

type flags uint8

const (
	outstanding flags = 1 << iota // the last question may still be answered
	answered                      // a question was answered
	ended                         // the kernel has closed it
	vanished                      // and nobody holds it any more, or both sides have closed it
	counted                       // among the controls of its path
	settled                       // nothing more to ask
	gaveUp                        // and nothing had arrived with the end
	reuses                        // carries SO_REUSEADDR
)

func (a *asking) is(f flags) bool { return a.flags&f != 0 }
func (a *asking) set(f flags)     { a.flags |= f }
func (a *asking) clear(f flags)   { a.flags &^= f }

func (a *asking) falseChance() float64 {
	if a.chance == 0 { // never computed, since no chance is
		return math.NaN()
	}
	return float64(a.chance)
}

// protection is why a connection is never touched.
type protection uint8

const (
	unprotected protection = iota
	bothEndsHere
	ownSession
	ofKubelet
)

// String says it in words; "" for an unprotected one.
func (p protection) String() string {
	switch p {
	case bothEndsHere:
		return "both ends are on this host"
	case ownSession:
		return "your own session depends on it"
	case ofKubelet:
		return "it belongs to kubelet"
	}
	return ""
}

// evidence puts together what is known of a row as of its last judgement.
func (s *Snapshot) evidence(r *row) verdict.Evidence {
	var a asking
	if s.Asked {
		a = *s.table.asking(r)
	}
	sock := &r.sock
	e := verdict.Evidence{
		State: sock.State, HeardKnown: sock.HasInfo, Sent: ms(sock.LastDataSent), Waiting: sock.Waiting(),
		SendQueue: sock.SendQueue, ZeroWindow: sock.HasWindow && sock.SendWindow == 0,
		Refusal: s.refusal(&a), Ended: a.is(ended), Vanished: a.is(vanished), GaveUp: a.is(gaveUp),
		Spoke:     a.refusal == probe.TooFresh && a.is(settled),
		Orphan:    sock.Inode == 0,
		Questions: int(a.questions), Answered: a.is(answered), AnsweredAfter: us(a.answeredUS),
	}
	e.Heard, _ = sock.Heard()
	if a.is(answered) {
		e.SinceAnswer = (a.judged - a.answer).span()
	}
	if e.Unanswered = int(a.unanswered); e.Unanswered > 0 && a.is(outstanding) {
		e.Unanswered-- // still open
	}
	if e.Unanswered > 0 {
		e.Silence = (a.judged - a.first).span()
	}
	if int(a.group) < len(s.fails) {
		e.Fail = s.fails[a.group]
	}
	return e
}

func (s *Snapshot) refusal(a *asking) string {
	switch {
	case a.protection != unprotected:
		return "protected: " + a.protection.String()
	case a.refusal != probe.NotRefused:
		return a.refusal.Error()
	}
	return ""
}
