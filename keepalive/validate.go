package keepalive

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// limits are what a system takes. Host defaults (sysctl) may lie beyond them.
type limits struct {
	minIdle, maxIdle, maxInterval time.Duration
	maxProbes                     int
	maxTimeout                    time.Duration
	// maxTotal bounds idle + interval·probes, 0 for no bound.
	maxTotal time.Duration
	// probesEndAtTimeout: the user timeout also ends the probing.
	probesEndAtTimeout bool
}

const (
	millisInInt  = (1<<31 - 1) * time.Millisecond // an int of milliseconds
	secondsInInt = millisInInt / time.Second * time.Second
)

// linuxLimits: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT of
// net/tcp.h, and an int of milliseconds for the user timeout.
func linuxLimits() limits {
	return limits{
		minIdle: time.Second, maxIdle: 32767 * time.Second, maxInterval: 32767 * time.Second,
		maxProbes: 127, maxTimeout: millisInInt, probesEndAtTimeout: true,
	}
}

// bsdLimits: the kernels of macOS and the BSDs hold times, and their sum, in
// an int of ticks, a thousand a second.
func bsdLimits() limits {
	return limits{
		minIdle: time.Second, maxIdle: secondsInInt, maxInterval: secondsInInt,
		maxProbes: 1<<31 - 1, maxTimeout: secondsInInt, maxTotal: secondsInInt,
	}
}

// solarisLimits: _keepalive_interval, _rexmit_interval_max and
// _keepalive_abort_interval in tcp_tunables.c of illumos, at their widest. The
// host may be tuned to less: an interval over a minute takes tuning.
func solarisLimits() limits {
	return limits{
		minIdle: 10 * time.Second, maxIdle: 10 * 24 * time.Hour, maxInterval: 2 * time.Hour,
		maxProbes: 1<<31 - 1, maxTimeout: millisInInt, maxTotal: secondsInInt,
	}
}

// windowsLimits: TCP_KEEPCNT takes 255 at most ("IPPROTO_TCP socket options").
func windowsLimits() limits {
	return limits{
		minIdle: time.Second, maxIdle: secondsInInt, maxInterval: secondsInInt,
		maxProbes: 255, maxTimeout: millisInInt,
	}
}

// PolicyError says which field of a policy cannot be, and what would do.
type PolicyError struct {
	Field   string // "idle", "interval", "probes", "user timeout" or "within"
	Value   string
	Allowed string
	Mend    string
}

// Error names the field, its value, what is allowed and the mend.
func (e *PolicyError) Error() string {
	return fmt.Sprintf("%s %s: allowed is %s: %s", e.Field, e.Value, e.Allowed, e.Mend)
}

// Validate returns a [*PolicyError] for a policy that the system this program
// runs on does not take; see [Policy.ValidateFor].
func (p Policy) Validate() error { return p.ValidateFor(runtime.GOOS) }

// ValidateFor returns a [*PolicyError] for a value outside the range of the
// system, named as in GOOS, and an error matching [errors.ErrUnsupported] for
// a system that this package does not know.
//
//	linux      idle, interval 1 s to 32767 s, probes 1 to 127,
//	           user timeout up to 2147483647 ms
//	windows    idle, interval 1 s to 2147483 s, probes 1 to 255,
//	           user timeout up to 2147483647 ms
//	illumos,   idle 10 s to 10 d, interval 1 s to 2 h (over 60 s only where the
//	solaris    host is tuned), idle + interval·probes up to 2147483 s
//	darwin,    idle, interval, user timeout 1 s to 2147483 s,
//	the BSDs   idle + interval·probes up to 2147483 s
//
// On Linux it also refuses a user timeout of at most idle +
// interval·(probes-1). With one that short the kernel gives up before all
// probes have been tried, at worst after a single lost one, which kills the
// living (two probes are taken when Probes is zero). What idle or interval
// leaves alone is checked by Set, against the socket. The kernel's timers are
// late by up to an eighth, and that counts towards the user timeout: idle +
// interval·probes leaves room for it, or all of it, where interval is over
// 8/71 of that sum; [Within] chooses it so.
func (p Policy) ValidateFor(goos string) error {
	s, ok := systemFor(goos, "")
	if !ok {
		return fmt.Errorf("check policy: %w on %s", errors.ErrUnsupported, goos)
	}
	return s.limits.check(p)
}

func (l limits) check(p Policy) error {
	switch {
	case p.Idle < 0 || p.Idle > l.maxIdle || p.Idle > 0 && roundUp(p.Idle, time.Second) < l.minIdle:
		return badTime("idle", p.Idle, l.minIdle, l.maxIdle)
	case p.Interval < 0 || p.Interval > l.maxInterval:
		return badTime("interval", p.Interval, time.Second, l.maxInterval)
	case p.Probes < 0 || p.Probes > l.maxProbes:
		return &PolicyError{"probes", fmt.Sprint(p.Probes), fmt.Sprintf("1 to %d", l.maxProbes),
			"give a number in that range, or 0 to leave it as it is"}
	case p.UserTimeout > l.maxTimeout:
		return &PolicyError{"user timeout", p.UserTimeout.String(), "1ms to " + l.maxTimeout.String(),
			"give a shorter one, 0 to switch it off, or a negative one to leave it as it is"}
	}
	if l.maxTotal > 0 && p.Probes > 0 && p.Interval > 0 &&
		roundUp(p.Interval, time.Second) > (l.maxTotal-roundUp(p.Idle, time.Second))/time.Duration(p.Probes) {
		return &PolicyError{"probes", fmt.Sprint(p.Probes),
			fmt.Sprintf("what keeps idle + interval·probes within %ds", l.maxTotal/time.Second),
			"give fewer probes, or shorten interval"}
	}
	if l.probesEndAtTimeout {
		return p.checkUserTimeout()
	}
	return nil
}

func badTime(field string, d, least, most time.Duration) error {
	return &PolicyError{field, d.String(), fmt.Sprintf("%ds to %ds", least/time.Second, most/time.Second),
		"give a time in that range, or 0 to leave it as it is"}
}

// checkUserTimeout takes values beyond the settable range, too: a host's
// defaults may have them.
func (p Policy) checkUserTimeout() error {
	if p.UserTimeout <= 0 || p.Idle <= 0 || p.Interval <= 0 {
		return nil
	}
	probes := p.Probes
	if probes <= 0 {
		probes = 2
	}
	idle, interval := roundUp(p.Idle, time.Second), roundUp(p.Interval, time.Second)
	floor := idle + interval*time.Duration(probes-1)
	if roundUp(p.UserTimeout, time.Millisecond) > floor {
		return nil
	}
	return &PolicyError{"user timeout", p.UserTimeout.String(),
		fmt.Sprintf("more than %v with idle %v, interval %v and %d probes, else the kernel gives up before the probes are spent", floor, idle, interval, probes),
		fmt.Sprintf("give at least %v, shorten idle or interval, or switch it off", floor+interval)}
}

func roundUp(d, unit time.Duration) time.Duration {
	if rest := d % unit; rest > 0 {
		return d - rest + unit
	}
	return d
}
