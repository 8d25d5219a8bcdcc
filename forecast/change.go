package forecast

import (
	"strconv"
	"time"

	"deadpeer/keepalive"
)

// Change is something that happens to the settings of a live socket.
type Change struct{ apply func(*Input) error }

// Apply tells what an idle connection is after the changes, made one after
// the other right now: its settings and when its timer is due. The result is
// for [Idle], or [For] with [SituationIdle].
//
// The order matters. A connection idle for 8 s that gets SO_KEEPALIVE after
// its other options is probed after its idle time, counted from now; one that
// gets TCP_KEEPIDLE after SO_KEEPALIVE is probed at once if 8 s are over it.
func Apply(in Input, changes ...Change) (Input, error) {
	for _, c := range changes {
		if err := c.apply(&in); err != nil {
			return Input{}, err
		}
	}
	return in, nil
}

// SetIdle is setsockopt(TCP_KEEPIDLE): the timer is armed again, for what the
// silence so far leaves of the new idle time; if nothing, the next probe goes
// out now, even in the middle of probing (tcp_sock_set_keepidle_locked).
func SetIdle(d time.Duration) Change {
	return Change{func(in *Input) error {
		if err := settableTime("idle", d); err != nil {
			return err
		}
		in.Policy.Idle = roundUp(d, time.Second)
		if in.KeepAlive {
			in.TimerIn = max(0, in.Policy.Idle-in.Heard)
			in.TimerFor = in.TimerIn
		}
		return nil
	}}
}

// SetInterval is setsockopt(TCP_KEEPINTVL): it counts from the pending expiry
// on.
func SetInterval(d time.Duration) Change {
	return Change{func(in *Input) error {
		if err := settableTime("interval", d); err != nil {
			return err
		}
		in.Policy.Interval = roundUp(d, time.Second)
		return nil
	}}
}

// SetProbes is setsockopt(TCP_KEEPCNT): it is looked at on the next expiry.
func SetProbes(n int) Change {
	return Change{func(in *Input) error {
		const most = 127 // MAX_TCP_KEEPCNT
		if n < 1 || n > most {
			return &InputError{"probes", strconv.Itoa(n), "1 to 127", "give a number in that range"}
		}
		in.Policy.Probes = n
		return nil
	}}
}

// SetUserTimeout is setsockopt(TCP_USER_TIMEOUT), 0 for none: it is looked at
// on the next expiry.
func SetUserTimeout(d time.Duration) Change {
	return Change{func(in *Input) error {
		if d < 0 || d > maxUserTimeout {
			return &InputError{"user timeout", d.String(), span{0, maxUserTimeout}.String(), "give a time in that range"}
		}
		in.Policy.UserTimeout = roundUp(d, time.Millisecond)
		return nil
	}}
}

// SetKeepAlive is setsockopt(SO_KEEPALIVE). Switching it on arms the timer for
// the whole idle time from now; probes that went unanswered before it was
// switched off still count. On when it is on changes nothing (tcp_set_keepalive).
func SetKeepAlive(on bool) Change {
	return Change{func(in *Input) error {
		switch {
		case on && !in.KeepAlive:
			in.TimerIn, in.TimerFor = in.Policy.Idle, in.Policy.Idle
		case !on:
			in.TimerIn = -1
		}
		in.KeepAlive = on
		return nil
	}}
}

// SetHost is a change of the host's sysctls for a socket that has none of
// those values of its own; zero fields stay. No timer is armed again: a
// shorter idle time is looked at when the old one is over.
func SetHost(p keepalive.Policy) Change {
	return Change{func(in *Input) error {
		for _, c := range []struct {
			field  string
			value  time.Duration
			target *time.Duration
		}{{"idle", p.Idle, &in.Policy.Idle}, {"interval", p.Interval, &in.Policy.Interval}} {
			if c.value < 0 || c.value > longest {
				return &InputError{c.field, c.value.String(), span{0, longest}.String(), "give a time in that range"}
			}
			if c.value > 0 {
				*c.target = roundUp(c.value, time.Second)
			}
		}
		if p.Probes < 0 || p.Probes > maxProbes {
			return &InputError{"probes", strconv.Itoa(p.Probes), "0 to 255", "give a number in that range"}
		}
		if p.Probes > 0 {
			in.Policy.Probes = p.Probes
		}
		return nil
	}}
}

func settableTime(field string, d time.Duration) error {
	const most = 32767 * time.Second // MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL
	if d < time.Second || d > most {
		return &InputError{field, d.String(), "1s to 32767s", "give a time in that range"}
	}
	return nil
}
