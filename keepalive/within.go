package keepalive

import (
	"fmt"
	"time"
)

// What [Within] and [WithinIdle] accept.
const (
	LeastWithin = 4 * time.Second
	MostWithin  = 20 * time.Hour
)

// Within makes the policy that gives a vanished peer up after d, rounded up to
// whole seconds:
//
//   - an idle connection not before d, counted from the last segment received,
//     and at latest at d plus the lateness of Linux's timer wheel, which is
//     under 8/63 (13 %) of d at any CONFIG_HZ; forecast.Idle has it for one;
//   - one with data in flight d after the first retransmission by timeout, so
//     d + PTO + RTO after the write, RTO being the retransmission timeout and
//     PTO, which is no longer, the tail-loss probe's, and at latest the timers'
//     lateness more. tcp_retries2 plays no part any more.
//
// The second comes from the user timeout, d as well. It also ends a living
// peer that keeps its window shut for that long, or that an outage of d hides
// while data is in flight; [WithinIdle] goes without it.
//
// The derivation, T being d in seconds:
//
//	interval = ⌊8·T/71⌋ + 1
//	probes   = min(5, ⌊T/interval⌋ − 1)
//	idle     = T − probes·interval
//
// so that idle + probes·interval, after which Linux gives up
// (tcp_keepalive_timer), is T, and so is the user timeout, which Linux looks at
// instead of the count. A timer for x fires up to 8/63·x late. The last probe
// but none must still find time left, or fewer lost probes than the count
// would be fatal: T > (idle + (probes−1)·interval)·71/63, that is
// interval > 8/71·T. Within takes the least such second, the most idle time
// (the fewest probes) being left by it, and five probes of it, or as many as
// leave an idle time no shorter than the interval, since after an answered
// probe Linux waits for the longer of the two. From 4 s on there are three
// probes at least: no one or two lost ones are fatal.
//
// On Windows before 10 1709, which sends ten probes, take [WithinDask].
func Within(d time.Duration) (Policy, error) {
	if d < LeastWithin || d > MostWithin {
		return Policy{}, &PolicyError{"within", d.String(), fmt.Sprintf("%v to %v", LeastWithin, MostWithin),
			"give a time in that range, or idle, interval and probes themselves"}
	}
	total := roundUp(d, time.Second)
	interval := (8*total/71/time.Second + 1) * time.Second
	probes := min(5, total/interval-1)
	return Policy{
		Idle:        total - probes*interval,
		Interval:    interval,
		Probes:      int(probes),
		UserTimeout: total,
	}, nil
}

// WithinIdle is [Within] for idle connections only: it leaves the user timeout
// as it is. Data in flight is then given up when that or tcp_retries2 says so,
// after a quarter of an hour by default.
func WithinIdle(d time.Duration) (Policy, error) {
	p, err := Within(d)
	if err != nil {
		return Policy{}, err
	}
	p.UserTimeout = -1
	return p, nil
}

// WithinDask is the derivation of Dask's set_tcp_timeout (distributed/comm/
// tcp.py), for systems set up by it and for a Windows that sends ten probes.
// With T the whole seconds of d, and all divisions rounding down:
//
//	probes   = 10
//	idle     = max(2, T/4)
//	interval = max(1, (T − idle)/10)
//	idle     = T − 10·interval
//
// and a user timeout of T. The sum is T, and T at least 11 s. Its faults:
//
//   - fractions are cut off, so it may give up before d;
//   - more time can mean an earlier first probe: 25 s gives idle 15 s and
//     interval 1 s, 26 s gives 6 s and 2 s;
//   - the interval is shorter than the timers' lateness may add up to, so that
//     on Linux the user timeout can come before the tenth probe and make nine
//     lost ones fatal, never before T, though.
func WithinDask(d time.Duration) (Policy, error) {
	const (
		probes = 10
		least  = (probes + 1) * time.Second
		most   = 36 * time.Hour
	)
	if d < least || d > most {
		return Policy{}, &PolicyError{"within", d.String(), fmt.Sprintf("%v to %v", least, most),
			"give a time in that range; Within goes down to 4s"}
	}
	t := int64(d / time.Second)
	idle := max(2, t/4)
	interval := max(1, (t-idle)/probes)
	idle = t - probes*interval
	return Policy{
		Idle:        time.Duration(idle) * time.Second,
		Interval:    time.Duration(interval) * time.Second,
		Probes:      probes,
		UserTimeout: time.Duration(t) * time.Second,
	}, nil
}
