package verdict

import (
	"math"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/conn"
)

// proven is evidence for which all conditions of dead hold, barely.
func proven() Evidence {
	return Evidence{
		State: conn.Established, HeardKnown: true, Heard: time.Hour, Sent: time.Hour,
		Questions: 6, Unanswered: 6, Silence: MinSilence,
	}
}

// measured is a path on which a question fails with the chance f at most.
func measured(questions, unanswered int) Fail {
	return Fail{Controls: MinControls, Questions: questions, Unanswered: unanswered}
}

// Each condition of dead, when it alone is violated, prevents the verdict. The
// fifth, spoilt questions, is the engine's: it does not count them.
func TestDead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*Evidence)
		want   conn.Verdict
		why    Why
	}{
		{"all hold", func(*Evidence) {}, conn.Dead, WhySilent},
		{"1: answered", func(e *Evidence) { e.Unanswered, e.Answered = 0, true }, conn.Alive, WhyAnswered},
		{"1: no question is over", func(e *Evidence) { e.Unanswered, e.Questions = 0, 1 }, conn.Suspect, WhyUnasked},
		{"2: one too few at 10 %", func(e *Evidence) { e.Unanswered = 5 }, conn.Suspect, WhyTooFew},
		{"2: three at least", func(e *Evidence) { e.Unanswered, e.Fail = 2, measured(100_000, 0) }, conn.Suspect, WhyTooFew},
		{"2: three suffice where none is lost", func(e *Evidence) { e.Unanswered, e.Fail = 3, measured(100_000, 0) }, conn.Dead, WhySilent},
		{"2: not where many are", func(e *Evidence) { e.Unanswered, e.Fail = 6, measured(1000, 500) }, conn.Suspect, WhyTooFew},
		{"2: then it takes more", func(e *Evidence) { e.Unanswered, e.Fail = 24, measured(1000, 500) }, conn.Dead, WhySilent},
		{"2: too few controls to be a measurement", func(e *Evidence) {
			e.Unanswered, e.Fail = 5, Fail{Controls: MinControls - 1, Questions: 100_000}
		}, conn.Suspect, WhyTooFew},
		{"3: too soon", func(e *Evidence) { e.Silence = MinSilence - time.Millisecond }, conn.Suspect, WhyTooSoon},
		{"4: answered before", func(e *Evidence) {
			e.Answered, e.SinceAnswer, e.Silence = true, 59*time.Second, 58*time.Second
		}, conn.Suspect, WhyAnsweredBefore},
		{"4: but long ago", func(e *Evidence) {
			e.Answered, e.SinceAnswer, e.Silence = true, 61*time.Second, 58*time.Second
		}, conn.Dead, WhySilent},
		{"4: silent for as long as release takes", func(e *Evidence) {
			e.Answered, e.SinceAnswer, e.Silence = true, 60*time.Second, 60*time.Second
		}, conn.Dead, WhySilent},
		{"answered before, one unanswered", func(e *Evidence) {
			e.Answered, e.SinceAnswer, e.Silence, e.Unanswered = true, time.Second, time.Second, 1
		}, conn.Alive, WhyAnswered},
		{"half-closed by us", func(e *Evidence) { e.State = conn.FinWait2 }, conn.Dead, WhySilent},
		{"half-closed by the peer", func(e *Evidence) { e.State, e.Heard, e.Sent = conn.CloseWait, time.Minute, time.Minute }, conn.Dead, WhySilent},
	} {
		e := proven()
		tt.change(&e)
		if j := Judge(e, Rules{}); j.Verdict != tt.want || j.Why != tt.why {
			t.Errorf("%s: %s, rule %d (%s), want %s, rule %d", tt.name, j.Verdict, j.Why, j.Reason(e), tt.want, tt.why)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	answered := Evidence{State: conn.Established, HeardKnown: true, Heard: time.Hour, Waiting: time.Hour, Questions: 1, Answered: true, AnsweredAfter: 300 * time.Microsecond}
	with := func(change func(*Evidence)) Evidence {
		e := answered
		change(&e)
		return e
	}
	for _, tt := range []struct {
		name   string
		e      Evidence
		rules  Rules
		want   conn.Verdict
		why    Why
		reason string
	}{
		{"answered", answered, Rules{}, conn.Alive, WhyAnswered, "answered after 0.3 ms"},
		{"answered with a full queue, not for long", with(func(e *Evidence) { e.SendQueue, e.Waiting = 9, 299*time.Second }), Rules{}, conn.Alive, WhyAnswered, ""},
		{"stuck queue", with(func(e *Evidence) { e.SendQueue = 4096 }), Rules{}, conn.Stuck, WhyStuck, "4096 bytes have been waiting for 1 h 0 m"},
		{"stuck window", with(func(e *Evidence) { e.ZeroWindow = true }), Rules{}, conn.Stuck, WhyStuck, "window is shut"},
		{"stuck as told", with(func(e *Evidence) { e.ZeroWindow, e.Waiting = true, time.Second }), Rules{StuckAfter: time.Second}, conn.Stuck, WhyStuck, ""},
		{"a queue of unknown age", with(func(e *Evidence) { e.SendQueue, e.HeardKnown = 9, false }), Rules{}, conn.Alive, WhyAnswered, ""},
		{"not asked", Evidence{State: conn.Established, Refusal: "no owner"}, Rules{}, conn.Unknown, WhyNotAsked, "no owner"},
		{"too fresh, and heard again", Evidence{State: conn.Established, Refusal: "too fresh", Spoke: true}, Rules{}, conn.Alive, WhySpoke, "heard from"},
		{"all questions spoilt, then no route", Evidence{State: conn.Established, Refusal: "no route", Questions: 4}, Rules{}, conn.Unknown, WhyNotAsked, "no route"},
		{"some unanswered, then refused", Evidence{State: conn.Established, Refusal: "one more could end it", Questions: 2, Unanswered: 2, Silence: time.Second}, Rules{}, conn.Suspect, WhyTooFew, "2 of 6 questions unanswered so far (chance of a mistake 1 %); no further question: one more could end it"},
		{"leaked", Evidence{State: conn.CloseWait, HeardKnown: true, Heard: 5 * time.Minute, Sent: 6 * time.Minute}, Rules{}, conn.Leaked, WhyLeaked, "closed 5 m 0 s ago"},
		{"not yet leaked", Evidence{State: conn.CloseWait, HeardKnown: true, Heard: 5 * time.Minute, Sent: 4 * time.Minute, Questions: 1, Answered: true}, Rules{}, conn.ClosingDown, WhyClosing, "the program has not yet"},
		{"handshake", Evidence{State: conn.SynSent}, Rules{}, conn.ClosingDown, WhyClosing, "ends by itself"},
		{"leaked as told", Evidence{State: conn.CloseWait, HeardKnown: true, Heard: time.Second, Sent: time.Second}, Rules{LeakedAfter: time.Second}, conn.Leaked, WhyLeaked, ""},
		{"CLOSE-WAIT that could not be asked", Evidence{State: conn.CloseWait, Refusal: "in flight"}, Rules{}, conn.ClosingDown, WhyClosing, "has not yet; not asked: in flight"},
		{"reset", with(func(e *Evidence) { e.Ended, e.Answered = true, false }), Rules{}, conn.Dead, WhyReset, "reset by the peer or a box on the path"},
		{"given up", with(func(e *Evidence) { e.Ended, e.GaveUp = true, true }), Rules{}, conn.Dead, WhyGaveUp, "the kernel gave it up"},
		{"vanished", with(func(e *Evidence) { e.Ended, e.Vanished = true, true }), Rules{}, conn.Unknown, WhyVanished, "ended while it was being asked"},
		{"vanished, given up or not", with(func(e *Evidence) { e.Ended, e.Vanished, e.GaveUp = true, true, true }), Rules{}, conn.Unknown, WhyVanished, ""},
		{"listening", Evidence{State: conn.Listen}, Rules{}, conn.Unknown, WhyListening, "has no peer"},
		{"orphan", Evidence{State: conn.FinWait2, Orphan: true}, Rules{}, conn.ClosingDown, WhyClosing, ""},
		{"FIN-WAIT-2 with an owner", Evidence{State: conn.FinWait2, Refusal: "exhausted"}, Rules{}, conn.Unknown, WhyNotAsked, "exhausted"},
		{"nothing known", Evidence{State: conn.Established, Refusal: ""}, Rules{}, conn.Suspect, WhyUnasked, "no question has had time"},
		{"silent", proven(), Rules{}, conn.Dead, WhySilent, "unreachable from here: 6 questions unanswered in 3.0 s"},
	} {
		j := Judge(tt.e, tt.rules)
		if j.Verdict != tt.want || j.Why != tt.why || !strings.Contains(j.Reason(tt.e), tt.reason) {
			t.Errorf("%s: %s, rule %d, %q, want %s, rule %d, %q", tt.name, j.Verdict, j.Why, j.Reason(tt.e), tt.want, tt.why, tt.reason)
		}
		if math.IsNaN(j.FalseChance) != (tt.e.Unanswered == 0) {
			t.Errorf("%s: chance %v", tt.name, j.FalseChance)
		}
	}
	for _, s := range []conn.State{conn.SynSent, conn.SynReceived, conn.NewSynReceived, conn.FinWait1, conn.TimeWait, conn.LastAck, conn.Closing} {
		for _, e := range []Evidence{{State: s}, {State: s, Refusal: "no owner"}, {State: s, Unanswered: 100, Questions: 100, Silence: time.Hour}} {
			if j := Judge(e, Rules{}); j.Verdict != conn.ClosingDown || !Transient(s) {
				t.Errorf("%s: %s", s, j.Verdict)
			}
		}
	}
}

func TestGlance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		e      Evidence
		rules  Rules
		want   conn.Verdict
		why    Why
		reason string
	}{
		{Evidence{State: conn.Established, HeardKnown: true, Heard: 10 * time.Second}, Rules{}, conn.Alive, WhyFresh, "heard 10 s ago"},
		{Evidence{State: conn.Established, HeardKnown: true, Heard: 10*time.Second + 1}, Rules{}, conn.Quiet, WhyIdle, "nothing heard for 10 s; not asked"},
		{Evidence{State: conn.Established, HeardKnown: true, Heard: 2 * time.Second}, Rules{Fresh: time.Second}, conn.Quiet, WhyIdle, ""},
		{Evidence{State: conn.Established}, Rules{}, conn.Unknown, WhyNotAsked, "the kernel tells nothing about it"},
		{Evidence{State: conn.FinWait2, HeardKnown: true, Heard: time.Hour}, Rules{}, conn.Quiet, WhyIdle, ""},
		{Evidence{State: conn.FinWait2, HeardKnown: true, Heard: time.Hour, Orphan: true}, Rules{}, conn.ClosingDown, WhyClosing, ""},
		{Evidence{State: conn.CloseWait, HeardKnown: true, Heard: time.Hour, Sent: time.Hour}, Rules{}, conn.Leaked, WhyLeaked, ""},
		{Evidence{State: conn.CloseWait, HeardKnown: true, Heard: time.Second, Sent: time.Hour}, Rules{}, conn.ClosingDown, WhyClosing, ""},
		{Evidence{State: conn.TimeWait}, Rules{}, conn.ClosingDown, WhyClosing, ""},
		{Evidence{State: conn.Listen}, Rules{}, conn.Unknown, WhyListening, ""},
		{Evidence{State: conn.Close}, Rules{}, conn.Unknown, WhyListening, ""},
	} {
		j := Glance(tt.e, tt.rules)
		if j.Verdict != tt.want || j.Why != tt.why || !strings.Contains(j.Reason(tt.e), tt.reason) || !math.IsNaN(j.FalseChance) {
			t.Errorf("%+v: %s, rule %d, %q", tt.e, j.Verdict, j.Why, j.Reason(tt.e))
		}
	}
}

// Every rule has words of its own.
func TestReasons(t *testing.T) {
	t.Parallel()
	seen := map[string]Why{}
	for why := WhyNotAsked; why <= WhyGaveUp; why++ {
		r := Judgement{Why: why, FalseChance: math.NaN()}.Reason(Evidence{})
		if other, twice := seen[r]; twice || r == "" || strings.HasPrefix(r, "rule ") {
			t.Errorf("rule %d: %q, as rule %d", why, r, other)
		}
		seen[r] = why
	}
	if r := (Judgement{Why: WhyGaveUp + 1}).Reason(Evidence{}); !strings.HasPrefix(r, "rule ") {
		t.Errorf("%q", r)
	}
	for d, want := range map[time.Duration]string{
		0: "0.0 ms", 340 * time.Microsecond: "0.3 ms", 100 * time.Millisecond: "100 ms", 999 * time.Millisecond: "999 ms",
		time.Second: "1.0 s", 10 * time.Second: "10 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 m 0 s", time.Hour: "1 h 0 m",
		7860 * time.Second: "2 h 11 m", 76 * time.Hour: "3 d 4 h", -time.Second: "-1.0 s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rtt, rttvar uint32 // microseconds
		want        time.Duration
	}{
		{0, 0, 3 * time.Second}, // never measured
		{100, 50, MinWait},
		{150_000, 12_500, MinWait},
		{150_000, 50_000, 1050 * time.Millisecond},
		{600_000, 100_000, 3 * time.Second},
	} {
		s := conn.Sock{RTTUS: tt.rtt, RTTVarUS: tt.rttvar, RTOUS: 120_000_000}
		if got := Wait(&s); got != tt.want {
			t.Errorf("rtt %d, rttvar %d: %v, want %v", tt.rtt, tt.rttvar, got, tt.want)
		}
	}
}
