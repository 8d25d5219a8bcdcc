package forecast

import (
	"time"

	"deadpeer/keepalive"
)

// Idle forecasts a connection with nothing in flight (ESTABLISHED,
// CLOSE-WAIT, or FIN-WAIT-2 with an owner) whose peer does not answer from
// now on: tcp_keepalive_timer. An input of settings only gives the times from
// the last segment on; with Heard, TimerIn and Probes of a live socket they
// are what remains. If the peer answered a probe at that last segment, the
// timer is due in an interval: say so in TimerIn, which matters where the
// interval is longer than the idle time.
//
// A user timeout of which the wheel's lateness decides whether a probe time
// reaches it widens the forecast to both outcomes. Without knowledge of the
// timer, Latest allows for one armed just now, as SO_KEEPALIVE does.
func Idle(in Input) Forecast {
	w := wheel{clampHZ(in.HZ)}
	p := clampPolicy(in.Policy)
	f := Forecast{Situation: SituationIdle, Rule: Never, HZ: w.hz}
	if !in.KeepAlive {
		return f
	}
	heard := clamp(in.Heard, maxAge)
	out := clamp(in.Probes, maxProbes)
	interval := max(p.Interval, w.tick())

	// The first expiry that finds the idle time over. One before that only
	// arms the rest of it, and a pending timer may itself be late.
	most := max(p.Idle, interval)
	due := max(0, p.Idle-heard)
	var first span
	switch pending := min(in.TimerIn, maxArm); {
	case pending < 0:
		first = span{due, most + w.late(most)}
	case pending == 0 && heard == 0:
		first = span{due, due + w.late(due)}
	default:
		first = span{max(due, pending), max(due+w.late(due), pending+w.late(max(most, pending)))}
	}
	expiry := func(i int64) span {
		n := time.Duration(i)
		return span{first.earliest + n*interval, first.latest + n*(interval+w.late(interval))}
	}

	f.GivesUp, f.Errno = true, "ETIMEDOUT"
	f.ArticleBound = max(0, p.Idle+time.Duration(p.Probes+1)*p.Interval-heard)
	var end int64 // the last expiry that can be the one that ends it
	if p.UserTimeout == 0 {
		f.Rule = KeepAlive
		end = int64(max(0, p.Probes-out))
		f.Earliest = expiry(end).earliest
	} else {
		f.Rule = UserTimeout
		var needed int64 // a probe must be out
		if out == 0 {
			needed = 1
		}
		left := p.UserTimeout - heard
		end = max(needed, intervalsUntil(left-first.earliest, interval))
		soonest := max(needed, intervalsUntil(left-first.latest, interval+w.late(interval)))
		f.Earliest = max(left, expiry(soonest).earliest)
	}
	f.Latest = expiry(end).latest
	for i := range min(end, MaxSteps) {
		at := expiry(i)
		f.Steps = append(f.Steps, Step{What: "probe", N: out + int(i) + 1, Earliest: at.earliest, Latest: at.latest})
	}
	return f
}

type span struct{ earliest, latest time.Duration }

// intervalsUntil is ⌈d/interval⌉, 0 for what is over already.
func intervalsUntil(d, interval time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/interval) + 1
}

// What a kernel can hold, or a little more, chosen so that no sum overflows:
// MaxSteps+1 intervals of maxArm, an eighth late, are under 200 years.
const (
	maxArm         = 20_000_000 * time.Second // 2³¹ ticks at HZ=100 are 21 million
	maxAge         = 1_000_000_000 * time.Second
	maxProbes      = 255
	maxUserTimeout = (1<<31 - 1) * time.Millisecond
)

func clampPolicy(p keepalive.Policy) keepalive.Policy {
	return keepalive.Policy{
		Idle:        roundUp(clamp(p.Idle, maxArm), time.Second),
		Interval:    roundUp(clamp(p.Interval, maxArm), time.Second),
		Probes:      clamp(p.Probes, maxProbes),
		UserTimeout: roundUp(clamp(p.UserTimeout, maxUserTimeout), time.Millisecond),
	}
}

func clamp[T int | time.Duration](v, most T) T { return min(max(v, 0), most) }

// roundUp rounds as package keepalive does when it sets a policy.
func roundUp(d, unit time.Duration) time.Duration { return (d + unit - 1) / unit * unit }
