// Package verdict decides from evidence whether a connection's peer is there.
// It is pure: no I/O, no clock, every OS. The rules are those of RFC 1122
// section 4.2.3.6 (one lost probe proves nothing) made strict: a peer is held
// to be dead only when the chance that a living one kept silent is at most
// one in a million.
//
//	j := verdict.Judge(evidence, verdict.Rules{})
//	fmt.Println(j.Verdict, j.Reason(evidence))
package verdict

import (
	"math"
	"time"

	"deadpeer/internal/conn"
)

// Limits of the proof of death.
const (
	// MaxFalseChance is the greatest accepted chance that a peer held to be
	// dead lives.
	MaxFalseChance = 1e-6
	// MinQuestions is the least number of unanswered questions.
	MinQuestions = 3
	// MinSilence is the least time from the first unanswered question to the
	// judgement.
	MinSilence = 3 * time.Second
	// AssumedFailChance is taken for the chance that a question to a living
	// peer stays unanswered, unless it was measured.
	AssumedFailChance = 0.1
	// MinControls is how many living connections make a measurement.
	MinControls = 20
	// MinWait is the least time after which a question counts as unanswered,
	// and the least time between two questions to one connection: peers
	// answer at most one such segment in 500 ms
	// (tcp_invalid_ratelimit, tcp_oow_rate_limited).
	MinWait = 600 * time.Millisecond
)

// Rules are the thresholds a user may change. Zero means the default.
type Rules struct {
	Silence     time.Duration // unbroken silence that a release needs, and that a peer which answered a moment ago is granted (60 s)
	Fresh       time.Duration // heard within this: alive without asking (10 s)
	StuckAfter  time.Duration // data that does not move for this long is stuck (5 min)
	LeakedAfter time.Duration // CLOSE-WAIT for this long is leaked (5 min)
}

// WithDefaults fills in the defaults.
func (r Rules) WithDefaults() Rules {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&r.Silence, time.Minute)
	set(&r.Fresh, 10*time.Second)
	set(&r.StuckAfter, 5*time.Minute)
	set(&r.LeakedAfter, 5*time.Minute)
	return r
}

// Wait is how long a question to s may stay without an answer before it
// counts as unanswered: the greater of MinWait and three times the base RTO.
func Wait(s *conn.Sock) time.Duration { return max(MinWait, 3*s.BaseRTO()) }

// Evidence is all that is known of one connection at the moment of judgement.
type Evidence struct {
	State      conn.State    // when last read
	Orphan     bool          // no program holds it any more, or not yet
	HeardKnown bool          // Heard, Sent and Waiting mean something
	Heard      time.Duration // since anything arrived, read before asking
	Sent       time.Duration // since we last sent data, read before asking
	Waiting    time.Duration // of what we sent, at least; likewise
	SendQueue  uint32        // bytes unacknowledged or unsent
	ZeroWindow bool          // the peer's window is shut

	Refusal  string // why the connection could not be asked; "" when it could
	Spoke    bool   // something arrived while it was seen to be too fresh to be asked
	Ended    bool   // the socket was gone, or CLOSED, after a question
	Vanished bool   // the socket was gone and nobody holds it any more, or both sides closed it
	GaveUp   bool   // nothing had arrived with the end: the kernel gave it up

	Questions     int           // asked in this run
	Unanswered    int           // the last ones, without an answer in between
	Silence       time.Duration // since the first of the unanswered ones
	Answered      bool          // a question of this run was answered
	AnsweredAfter time.Duration // how long the answer took, an upper bound
	SinceAnswer   time.Duration // since the last answer

	Fail Fail // the chance that a living peer leaves a question unanswered
}

// Why names the rule that led to a verdict.
type Why uint8

// The rules, in the order they are tried.
const (
	WhyNotAsked Why = iota
	WhyLeaked
	WhyClosing
	WhyVanished
	WhyReset
	WhySilent
	WhyStuck
	WhyAnswered
	WhyTooFew
	WhyTooSoon
	WhyAnsweredBefore
	WhyUnasked
	WhyFresh
	WhyIdle
	WhyListening
	WhySpoke
	WhyGaveUp
)

// Judgement is a verdict with its rule. The reason in words is made on demand.
type Judgement struct {
	Verdict     conn.Verdict
	Why         Why
	FalseChance float64 // that a living peer kept silent all the same; NaN when nothing was unanswered
}

// Judge gives the verdict on a connection that was selected for asking.
func Judge(e Evidence, r Rules) Judgement {
	r = r.WithDefaults()
	j := Judgement{FalseChance: math.NaN()}
	if e.Unanswered > 0 {
		j.FalseChance = e.Fail.chanceOf(e.Unanswered)
	}
	j.Verdict, j.Why = judge(e, r, j.FalseChance)
	return j
}

func judge(e Evidence, r Rules, falseChance float64) (conn.Verdict, Why) {
	if e.State == conn.CloseWait && leaked(e, r) {
		return conn.Leaked, WhyLeaked
	}
	if e.Ended && e.Questions > 0 {
		if e.Vanished {
			return conn.Unknown, WhyVanished
		} else if e.GaveUp {
			return conn.Dead, WhyGaveUp
		}
		return conn.Dead, WhyReset
	}
	if !conn.Connections.Has(e.State) {
		return conn.Unknown, WhyListening
	}
	if e.transient() {
		return conn.ClosingDown, WhyClosing
	}
	// A question that was spoilt, or could not be repeated, is as good as none.
	if e.Refusal != "" && !e.Answered && e.Unanswered == 0 {
		switch {
		case e.State == conn.CloseWait:
			return conn.ClosingDown, WhyClosing
		case e.Spoke:
			return conn.Alive, WhySpoke
		}
		return conn.Unknown, WhyNotAsked
	}
	if e.Unanswered > 0 {
		if why, proven := proof(e, r, falseChance); proven {
			return conn.Dead, WhySilent
		} else if !e.Answered || e.Unanswered >= MinQuestions {
			return conn.Suspect, why
		}
	}
	if !e.Answered {
		return conn.Suspect, WhyUnasked
	}
	switch {
	case e.State == conn.CloseWait:
		return conn.ClosingDown, WhyClosing
	case e.HeardKnown && (e.SendQueue > 0 || e.ZeroWindow) && e.Waiting >= r.StuckAfter:
		return conn.Stuck, WhyStuck
	}
	return conn.Alive, WhyAnswered
}

// proof holds the conditions of death to the evidence. The fifth, that no
// question was spoilt, is met by whoever counts: spoilt ones are not counted.
func proof(e Evidence, r Rules, falseChance float64) (Why, bool) {
	switch {
	case e.Unanswered < MinQuestions || falseChance > MaxFalseChance*(1+1e-9): // 0.1 to the sixth is a hair above it
		return WhyTooFew, false
	case e.Silence < MinSilence:
		return WhyTooSoon, false
	case e.Answered && e.SinceAnswer < r.Silence && e.Silence < r.Silence:
		return WhyAnsweredBefore, false
	}
	return WhySilent, true
}

// Glance gives the verdict of scan, which asks nobody.
func Glance(e Evidence, r Rules) Judgement {
	r = r.WithDefaults()
	j := Judgement{FalseChance: math.NaN()}
	switch {
	case !conn.Connections.Has(e.State):
		j.Verdict, j.Why = conn.Unknown, WhyListening
	case e.State == conn.CloseWait && leaked(e, r):
		j.Verdict, j.Why = conn.Leaked, WhyLeaked
	case e.transient() || e.State == conn.CloseWait:
		j.Verdict, j.Why = conn.ClosingDown, WhyClosing
	case !e.HeardKnown:
		j.Verdict, j.Why = conn.Unknown, WhyNotAsked
	case e.Heard <= r.Fresh:
		j.Verdict, j.Why = conn.Alive, WhyFresh
	default:
		j.Verdict, j.Why = conn.Quiet, WhyIdle
	}
	return j
}

func leaked(e Evidence, r Rules) bool {
	return e.HeardKnown && e.Heard >= r.LeakedAfter && e.Sent >= r.LeakedAfter
}

// transient adds to Transient the orphan in FIN-WAIT-2, which the kernel ends
// after tcp_fin_timeout.
func (e Evidence) transient() bool {
	return Transient(e.State) || e.State == conn.FinWait2 && e.Orphan
}

// Transient reports whether a connection in that state ends by itself, so
// that nobody needs to ask: the handshake and every closing state but
// CLOSE-WAIT and FIN-WAIT-2, which can last for ever.
func Transient(s conn.State) bool {
	switch s {
	case conn.SynSent, conn.SynReceived, conn.NewSynReceived, conn.FinWait1,
		conn.TimeWait, conn.LastAck, conn.Closing:
		return true
	}
	return false
}
