package verdict

import (
	"fmt"
	"math"
	"time"

	"deadpeer/internal/conn"
)

// Reason says in words why the judgement came out as it did.
func (j Judgement) Reason(e Evidence) string {
	if (j.Why == WhyTooFew || j.Why == WhyTooSoon) && e.Refusal != "" {
		return j.reason(e) + "; no further question: " + e.Refusal
	}
	return j.reason(e)
}

func (j Judgement) reason(e Evidence) string {
	switch j.Why {
	case WhyNotAsked:
		if e.Refusal != "" {
			return e.Refusal
		}
		return "the kernel tells nothing about it"
	case WhyLeaked:
		return fmt.Sprintf("the peer closed %s ago and the program has not: a local bug", Duration(min(e.Heard, e.Sent)))
	case WhyClosing:
		switch {
		case e.State != conn.CloseWait:
			return "closing: ends by itself"
		case e.Refusal != "":
			return "the peer has closed and the program has not yet; not asked: " + e.Refusal
		}
		return "the peer has closed and the program has not yet"
	case WhyVanished:
		return "ended while it was being asked"
	case WhyReset:
		return "reset by the peer or a box on the path"
	case WhySilent:
		return fmt.Sprintf("unreachable from here: %d questions unanswered in %s", e.Unanswered, Duration(e.Silence))
	case WhyStuck:
		if e.ZeroWindow {
			return fmt.Sprintf("answers, but its window is shut and no data was sent for %s", Duration(e.Waiting))
		}
		return fmt.Sprintf("answers, but %d bytes have been waiting for %s", e.SendQueue, Duration(e.Waiting))
	case WhyAnswered:
		return "answered after " + Duration(e.AnsweredAfter)
	case WhyTooFew:
		return fmt.Sprintf("%d of %d questions unanswered so far (chance of a mistake %s)", e.Unanswered, e.Fail.Needed(), percent(j.FalseChance))
	case WhyTooSoon:
		return fmt.Sprintf("%d questions unanswered, but only for %s", e.Unanswered, Duration(e.Silence))
	case WhyAnsweredBefore:
		return fmt.Sprintf("silent for %s, but it answered %s ago", Duration(e.Silence), Duration(e.SinceAnswer))
	case WhyUnasked:
		if e.Refusal != "" {
			return e.Refusal
		}
		return "no question has had time to be answered"
	case WhyFresh:
		return fmt.Sprintf("heard %s ago", Duration(e.Heard))
	case WhyIdle:
		return fmt.Sprintf("nothing heard for %s; not asked", Duration(e.Heard))
	case WhySpoke:
		return "was heard from while it was being looked at"
	case WhyGaveUp:
		return "the kernel gave it up: nothing came from the peer"
	case WhyListening:
		return "has no peer"
	}
	return fmt.Sprintf("rule %d", j.Why)
}

func percent(p float64) string {
	if math.IsNaN(p) {
		return "unknown"
	}
	return fmt.Sprintf("%.2g %%", 100*p)
}

// Duration writes d as people say it: three figures at most, in the unit that
// fits, from "0.3 ms" to "3 d 4 h".
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Duration(-d)
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d m %d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h %d m", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%d d %d h", int(d.Hours())/24, int(d.Hours())%24)
	}
}
