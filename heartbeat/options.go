package heartbeat

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// Options are how a [Monitor] goes about it. The zero value is good.
type Options struct {
	// Period is the longest silence before a ping. Zero takes the
	// environment's: DEADPEER_HEARTBEAT_PERIOD, or else ZEO_KEEPALIVE_PERIOD,
	// a Go duration or a bare number of seconds. Negative, or neither given or
	// positive: the monitor does not start.
	Period time.Duration
	// Deadline is how long a ping or an attempt to reconnect may take, 10 s
	// when zero.
	Deadline time.Duration
	// Failures is how many pings in a row must fail before a target is down,
	// 2 when zero: one lost answer proves nothing (RFC 1122 section 4.2.3.6).
	Failures int
	// Jitter is the part of the period, at most 1, by which a ping may come
	// earlier, at random, so that targets do not move in step. It is 0.1 when
	// zero, and none when negative.
	Jitter float64
	// BackoffMin bounds the wait after the first failed attempt to reconnect,
	// 1 s when zero. The bound doubles with each failure up to BackoffMax, 1
	// minute when zero. A wait is anything from none to its bound, at random,
	// so that clients of a server that comes back do not come all at once.
	BackoffMin, BackoffMax time.Duration
	// Workers bounds the calls of targets that are under way at one time, 4096
	// when zero. Calls past their deadline do not count.
	Workers int
	// Observer is told what happens. Nil logs to slog.Default().
	Observer Observer
}

// The environment variables of the period, the first one set counts.
const (
	EnvPeriod    = "DEADPEER_HEARTBEAT_PERIOD"
	EnvZEOPeriod = "ZEO_KEEPALIVE_PERIOD"
)

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	def(&o.Deadline, 10*time.Second)
	o.Deadline = min(o.Deadline, math.MaxInt64/2) // which others are added to
	def(&o.BackoffMin, time.Second)
	def(&o.BackoffMax, time.Minute)
	o.BackoffMax = max(o.BackoffMax, o.BackoffMin)
	if o.Failures <= 0 {
		o.Failures = 2
	}
	if o.Workers <= 0 {
		o.Workers = 4096
	}
	switch {
	case o.Jitter == 0 || math.IsNaN(o.Jitter):
		o.Jitter = 0.1
	default:
		o.Jitter = min(max(o.Jitter, 0), 1)
	}
	if o.Observer == nil {
		o.Observer = LogTo(slog.Default())
	}
	return o
}

// period is the one in force: the option's, else the environment's, else 0.
func (o Options) period() (time.Duration, error) {
	if o.Period != 0 {
		return max(o.Period, 0), nil
	}
	for _, name := range []string{EnvPeriod, EnvZEOPeriod} {
		text := strings.TrimSpace(os.Getenv(name))
		if text == "" {
			continue
		}
		period, err := parsePeriod(text)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		return max(period, 0), nil
	}
	return 0, nil
}

func parsePeriod(text string) (time.Duration, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || math.Abs(seconds) >= math.MaxInt64/float64(time.Second) || math.IsNaN(seconds) {
		return 0, fmt.Errorf("%q is neither a number of seconds nor a duration such as 30s or 2m", text)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}
