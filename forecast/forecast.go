// Package forecast tells when, by which rule and with which errno the kernel
// will give a TCP connection up by itself, or that it never will, and what it
// does until then. It is a model of Linux's timers (net/ipv4/tcp_timer.c,
// kernel/time/timer.c; measured on Linux 6.18), does no I/O, needs no
// privilege and runs on every OS. The idle rules of other systems are there as
// their documents have them.
//
//	f, err := forecast.For(forecast.SituationInFlight, forecast.Input{RTT: 40 * time.Millisecond})
//	fmt.Println(f.Earliest, f.Latest, f.Errno) // 16m11.624s 16m13.672s ETIMEDOUT
//	f, err = forecast.For(forecast.SituationIdle, forecast.Input{KeepAlive: true, Policy: policy})
//
// [For] forecasts a situation from its beginning, or a connection as it is
// found in the middle of it: idle and being probed, or with so many
// retransmissions behind it. [Idle] does that for the idle ones and takes every
// value that a kernel can hold.
//
// Timers of the kernel are late by up to an eighth of their time, depending on
// CONFIG_HZ and on the phase of the tick counter when they are armed. A
// forecast therefore has two ends, Earliest and Latest. With the phase known
// ([Clock]) they are one.
//
// [Apply] tells what changing an option of a live socket does to its timer,
// [Plan] goes the other way: from a detection time to a policy.
package forecast

import (
	"math"
	"time"

	"deadpeer/keepalive"
)

// Rule names what ends a connection.
type Rule string

// The rules.
const (
	Never         Rule = "never"          // nothing does
	KeepAlive     Rule = "keepalive"      // as many unanswered probes as the policy says
	UserTimeout   Rule = "user-timeout"   // TCP_USER_TIMEOUT, which makes every count void
	Reset         Rule = "reset"          // the peer knows nothing of the connection
	Retries       Rule = "retries"        // tcp_retries2
	OrphanRetries Rule = "orphan-retries" // tcp_orphan_retries, for what nobody holds
	SYNRetries    Rule = "syn-retries"    // tcp_syn_retries or TCP_SYNCNT
	SYNACKRetries Rule = "synack-retries" // tcp_synack_retries
	FinTimeout    Rule = "fin-timeout"    // tcp_fin_timeout or TCP_LINGER2
	NoNeighbour   Rule = "no-neighbour"   // ARP or neighbour discovery failed
)

// Forecast is how a connection whose peer is gone will end. All times count
// from now, the moment that Input describes.
type Forecast struct {
	Situation Situation
	GivesUp   bool // false: it stays for ever, and the times below are 0
	Rule      Rule
	Errno     string        // what the program gets, "ETIMEDOUT", or "" when it gets nothing
	Earliest  time.Duration // not before that
	Latest    time.Duration // not after that
	// Expected is the one instant to wait for, when Input.Clock is known; else
	// it is 0. Where it depends on when an idle connection's timer was armed,
	// which the kernel does not tell, it is the likeliest between the ends; of a
	// retransmission found in the middle it is 0 then.
	Expected time.Duration
	// Steps are what the kernel does until then, at most [MaxSteps]. Those that
	// may come after the end, such as the last probe before a user timeout, may
	// not come at all.
	Steps []Step
	// ArticleBound is idle + (probes+1)·interval from the last segment on, the
	// rule of thumb of older texts. Linux is one interval faster. 0 where
	// keepalive does not decide.
	ArticleBound time.Duration
	HZ           int // what Latest assumes; 0 when not Linux
	// Documented says that the rule is what the system's documents say, not
	// measured, and that no lateness of timers is known.
	Documented bool
}

// Step is one thing the kernel does on the way.
type Step struct {
	What     string // one of the constants
	N        int    // which one of its kind; of probes, counting those already unanswered
	Earliest time.Duration
	Latest   time.Duration
}

// What a step can be.
const (
	Probe          = "probe"           // a keepalive probe
	Retransmission = "retransmission"  // of data
	TailLossProbe  = "tail-loss probe" // the last segment once more, before the timeout (RFC 8985)
	WindowProbe    = "window probe"    // has the window opened?
	SYN            = "SYN"             // repeated
	SYNACK         = "SYN-ACK"         // repeated
	FIN            = "FIN"             // repeated
	NeighbourFails = "neighbour fails" // the next hop has not answered for 3 s
)

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
	Situation     Situation    `json:"situation"`
	GivesUp       bool         `json:"gives_up"`
	EarliestS     *float64     `json:"earliest_s"`
	LatestS       *float64     `json:"latest_s"`
	ExpectedS     *float64     `json:"expected_s,omitempty"`
	Rule          Rule         `json:"rule"`
	Errno         *string      `json:"errno"`
	ArticleBoundS *float64     `json:"article_bound_s"`
	Documented    bool         `json:"documented,omitempty"`
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
	r := Report{Situation: f.Situation, GivesUp: f.GivesUp, Rule: f.Rule, Documented: f.Documented, Steps: make([]ReportStep, 0, len(f.Steps))}
	if f.GivesUp {
		earliest, latest := seconds(f.Earliest), seconds(f.Latest)
		r.EarliestS, r.LatestS = &earliest, &latest
		if f.Errno != "" {
			r.Errno = &f.Errno
		}
		if f.Expected != 0 {
			expected := seconds(f.Expected)
			r.ExpectedS = &expected
		}
		if f.ArticleBound != 0 {
			bound := seconds(f.ArticleBound)
			r.ArticleBoundS = &bound
		}
	}
	for _, s := range f.Steps {
		r.Steps = append(r.Steps, ReportStep{s.What, s.N, seconds(s.Earliest), seconds(s.Latest)})
	}
	return r
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }
