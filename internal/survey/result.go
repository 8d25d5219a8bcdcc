package survey

import (
	"math"
	"slices"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

// Never is the How of a Result when no connection was forgotten within Max.
const Never Outcome = "never"

// Result is what a survey found, or knew when it was stopped.
type Result struct {
	// How is what ends idle connections: Silent, Reset, Closed or Disturbed,
	// Never, or "" when it is not known yet.
	How Outcome
	// Alive is the longest idle time that a connection is known to survive,
	// Gone the shortest known to end it; 0 when not known.
	Alive, Gone time.Duration
	// Odd is the shortest idle time at which a connection ended though others
	// lived longer; 0 when none did. The path, or the server, then ends some
	// for other reasons than the time.
	Odd time.Duration
	// Questions counts the probes to connections that answered, Unanswered
	// those that were lost, or their answers.
	Questions, Unanswered int
	RTT                   time.Duration // median of the handshakes
}

// result sums the observations up.
func (s State) result(o Options) Result {
	k := weigh(s.Observations, o.Resolution)
	r := Result{How: k.how, Alive: k.alive, Gone: k.gone, Odd: k.odd}
	if k.gone == 0 && k.alive >= o.Max {
		r.How = Never
	}
	var trips []time.Duration
	for _, v := range s.Observations {
		if v.RTT > 0 {
			trips = append(trips, v.RTT)
		}
		if v.Outcome == Answered {
			r.Questions += v.Unanswered + 1
			r.Unanswered += v.Unanswered
		}
	}
	if len(trips) > 0 {
		slices.Sort(trips)
		r.RTT = trips[len(trips)/2]
	}
	return r
}

// Loss is the chance that a segment is lost, one way, by the probes that were:
// 1 - √(1 - share unanswered).
func (r Result) Loss() float64 {
	if r.Questions == 0 {
		return 0
	}
	return 1 - math.Sqrt(1-float64(r.Unanswered)/float64(r.Questions))
}

// safe is the longest idle time that may be relied on, 0 where keepalive does
// not decide: nothing forgets, or the server itself closes.
func (r Result) safe() time.Duration {
	if r.How != Silent && r.How != Reset {
		return 0
	}
	if r.Odd > 0 {
		return min(r.Alive, r.Odd)
	}
	return r.Alive
}

// late is how long a timer of Linux may take, whatever its HZ: 8/63 more
// (kernel/time/timer.c).
func late(d time.Duration) time.Duration { return d * 71 / 63 }

// Recommend gives the policy that keeps connections through this path alive:
// the first probe after at most four fifths of what the path remembers, and three of
// them, the timers at their latest, before it forgets. As many must go
// unanswered as make the loss of all of them to a living peer a matter of one
// in a million. ok is false where no keepalive is needed, or none would help.
func (r Result) Recommend() (p keepalive.Policy, ok bool) {
	safe := r.safe()
	if safe < 2*time.Second {
		return p, false
	}
	p.Idle = max(time.Second, min(safe*4/5, 32767*time.Second).Truncate(time.Second))
	p.Interval = min(p.Idle, max(time.Second, ((safe-late(p.Idle))/3).Truncate(time.Second)))
	for p.Idle > time.Second && late(p.Idle)+2*late(p.Interval) > safe {
		p.Idle -= time.Second
	}
	p.UserTimeout = -1
	const atMost, chance = 20, 1e-6
	for p.Probes = forecast.MinProbes; p.Probes < atMost && forecast.FalseKill(p, r.Loss()) > chance; {
		p.Probes++
	}
	p.Probes = max(5, p.Probes)
	return p, true
}

// Nearest gives the profile with the longest idle time whose whole cycle is
// over, the timers at their latest, before the path forgets.
func (r Result) Nearest() (best keepalive.Profile, ok bool) {
	for _, p := range keepalive.Profiles() {
		if late(p.DetectionTime()) < r.safe() && p.Policy.Idle > best.Policy.Idle {
			best, ok = p, true
		}
	}
	return best, ok
}
