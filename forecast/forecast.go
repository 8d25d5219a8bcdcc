// Package forecast tells when, by which rule and with which errno the kernel
// will give a TCP connection up by itself, or that it never will. It is a
// model of Linux's timers (net/ipv4/tcp_timer.c, kernel/time/timer.c), does no
// I/O, needs no privilege and runs on every OS.
//
//	f := forecast.Idle(forecast.Input{
//		KeepAlive: true,
//		Policy:    keepalive.Policy{Idle: 5 * time.Second, Interval: 2 * time.Second, Probes: 3},
//	})
//	fmt.Println(f.Earliest, f.Latest) // 11s 11.352s
//
// A forecast has two ends. Earliest takes the timers to be exact, to within a
// tick. Latest has each of them late by as much as the kernel's timer wheel
// can make it, which depends on CONFIG_HZ.
//
// Only [Idle] is there; other situations will be functions beside it, with
// further fields in [Input] whose zero value keeps today's meaning.
package forecast

import (
	"math"
	"time"

	"deadpeer/keepalive"
)

// Input is what a forecast starts from. Values out of range are clamped to
// the nearest that a kernel can hold.
type Input struct {
	// KeepAlive says whether SO_KEEPALIVE is on.
	KeepAlive bool
	// Policy has the values in force, as [keepalive.Get] reads them. Zero is
	// zero here, as a sysctl can set it: no interval sends the probes a tick
	// apart, no probes gives up without one. A user timeout of zero or less is
	// none.
	Policy keepalive.Policy
	// HZ is the kernel's CONFIG_HZ, ticks per second; 0 means 250.
	HZ int
	// Heard is the time since the last segment from the peer, data or ACK.
	Heard time.Duration
	// TimerIn is the time until the pending keepalive timer is due (sock_diag
	// tells it). Negative means not known. Zero, that the timer does not hold
	// anything up, which makes a forecast from the last segment on.
	TimerIn time.Duration
	// Probes is how many probes have gone unanswered so far (tcpi_probes).
	Probes int
}

// Rule names what ends a connection.
type Rule string

// The rules.
const (
	Never       Rule = "never"        // nothing does
	KeepAlive   Rule = "keepalive"    // as many unanswered probes as the policy says
	UserTimeout Rule = "user-timeout" // TCP_USER_TIMEOUT, which makes the count void
)

// Forecast is how a connection whose peer is gone will end. All times count
// from now, the moment that Input describes.
type Forecast struct {
	Situation string // "idle"
	GivesUp   bool   // false: it stays for ever, and the times below are 0
	Rule      Rule
	Errno     string        // what the program gets, "ETIMEDOUT", or "" when it gets nothing
	Earliest  time.Duration // not before that
	Latest    time.Duration // not after that
	// Steps are the probes still to come, at most [MaxSteps] of them. With a
	// user timeout the last of them may not go out.
	Steps []Step
	// ArticleBound is idle + (probes+1)·interval from the last segment on, the
	// rule of thumb of older texts. Linux is one interval faster.
	ArticleBound time.Duration
	HZ           int // what Latest assumes
}

// Step is one thing the kernel does on the way.
type Step struct {
	What     string // "probe"
	N        int    // which one, counting those already unanswered
	Earliest time.Duration
	Latest   time.Duration
}

// MaxSteps bounds Forecast.Steps: no probe count is above it, but a user
// timeout can be worth millions of probes.
const MaxSteps = 255

// DetectionTime is how long after its last segment the kernel gives an idle
// connection up with the policy, timers being exact: idle + probes·interval,
// or, with a user timeout, the first probe time at or after it that has a
// probe before it. The values are taken as in [Input].
func DetectionTime(p keepalive.Policy) time.Duration {
	p = clampPolicy(p)
	switch {
	case p.UserTimeout == 0:
		return p.Idle + time.Duration(p.Probes)*p.Interval
	case p.Interval == 0:
		return max(p.Idle, p.UserTimeout)
	}
	return p.Idle + time.Duration(max(1, intervalsUntil(p.UserTimeout-p.Idle, p.Interval)))*p.Interval
}

// Report is a forecast as the JSON contract spells it; a time that does not
// exist is null.
type Report struct {
	Situation     string       `json:"situation"`
	GivesUp       bool         `json:"gives_up"`
	EarliestS     *float64     `json:"earliest_s"`
	LatestS       *float64     `json:"latest_s"`
	Rule          Rule         `json:"rule"`
	Errno         *string      `json:"errno"`
	ArticleBoundS *float64     `json:"article_bound_s"`
	Steps         []ReportStep `json:"steps"`
}

// ReportStep is a [Step] as the JSON contract spells it.
type ReportStep struct {
	What      string  `json:"what"`
	N         int     `json:"n"`
	EarliestS float64 `json:"earliest_s"`
	LatestS   float64 `json:"latest_s"`
}

// Report gives the forecast for JSON, times in seconds to the millisecond. It
// can be embedded beside further fields.
func (f Forecast) Report() Report {
	r := Report{Situation: f.Situation, GivesUp: f.GivesUp, Rule: f.Rule, Steps: make([]ReportStep, 0, len(f.Steps))}
	if f.GivesUp {
		earliest, latest, bound := seconds(f.Earliest), seconds(f.Latest), seconds(f.ArticleBound)
		r.EarliestS, r.LatestS, r.ArticleBoundS, r.Errno = &earliest, &latest, &bound, &f.Errno
	}
	for _, s := range f.Steps {
		r.Steps = append(r.Steps, ReportStep{s.What, s.N, seconds(s.Earliest), seconds(s.Latest)})
	}
	return r
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }
