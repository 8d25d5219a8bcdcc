package keepalive

import (
	"fmt"
	"strconv"
	"time"
)

// The limits of Linux: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL and
// MAX_TCP_KEEPCNT of net/tcp.h, and an int of milliseconds for the user
// timeout. Host defaults (sysctl) may lie beyond them.
const (
	maxTime        = 32767 * time.Second
	maxProbes      = 127
	maxUserTimeout = (1<<31 - 1) * time.Millisecond
)

// PolicyError says which field of a policy cannot be, and what would do.
type PolicyError struct {
	Field   string // "idle", "interval", "probes" or "user timeout"
	Value   string
	Allowed string
	Mend    string
}

// Error names the field, its value, what is allowed and the mend.
func (e *PolicyError) Error() string {
	return fmt.Sprintf("%s %s: allowed is %s: %s", e.Field, e.Value, e.Allowed, e.Mend)
}

// Validate returns a [*PolicyError] for a value outside the range of Linux
// (idle and interval 1 s to 32767 s, probes 1 to 127, user timeout up to
// 2147483647 ms), and for a user timeout of at most idle + interval·(probes-1).
// With one that short the kernel gives up before all probes have been tried,
// at worst after a single lost one, which kills the living (two probes are
// taken when Probes is zero). What idle or interval leaves alone is checked by
// Set, against the socket.
//
// The kernel's timers are late by up to an eighth, and that counts towards the
// user timeout: idle + interval·probes leaves room for it.
func (p Policy) Validate() error {
	if err := checkSeconds("idle", p.Idle); err != nil {
		return err
	}
	if err := checkSeconds("interval", p.Interval); err != nil {
		return err
	}
	if p.Probes < 0 || p.Probes > maxProbes {
		return &PolicyError{"probes", strconv.Itoa(p.Probes), "1 to 127",
			"give a number in that range, or 0 to leave it as it is"}
	}
	if p.UserTimeout > maxUserTimeout {
		return &PolicyError{"user timeout", p.UserTimeout.String(), "1ms to " + maxUserTimeout.String(),
			"give a shorter one, 0 to switch it off, or a negative one to leave it as it is"}
	}
	return p.checkUserTimeout()
}

func checkSeconds(field string, d time.Duration) error {
	if d < 0 || d > maxTime {
		return &PolicyError{field, d.String(), "1s to 32767s",
			"give a time in that range, or 0 to leave it as it is"}
	}
	return nil
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
