package engine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/attach"
	"deadpeer/keepalive"
)

// hostDefaults are what a network namespace gives its sockets (tcp(7)).
type hostDefaults struct {
	policy keepalive.Policy // without a user timeout, of which there is no default
}

// defaults reads them in the namespace. Needs CAP_SYS_ADMIN unless it is our
// own.
func (s *space) defaults() (d hostDefaults, err error) {
	err = s.ns.Do(func() error {
		for name, value := range map[string]func(int){
			"tcp_keepalive_time":   func(v int) { d.policy.Idle = time.Duration(v) * time.Second },
			"tcp_keepalive_intvl":  func(v int) { d.policy.Interval = time.Duration(v) * time.Second },
			"tcp_keepalive_probes": func(v int) { d.policy.Probes = v },
		} {
			b, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
			if err != nil {
				return err
			}
			v, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			value(v)
		}
		return nil
	})
	return d, err
}

// foreseeInFlight says when data in flight is given up on the attached
// connections that have no user timeout, for the one that takes longest.
func (r *run) foreseeInFlight(out *Attached, items []attach.Item, rows []uint32, planned bool) error {
	var in *forecast.Input
	for n, i := range rows {
		row := r.snap.table.at(i)
		o := r.snap.outcomes[i]
		if row.settings == 0 || !o.Done && !planned || planned && items[n].Policy.UserTimeout > 0 {
			continue
		}
		s := r.snap.settings[row.settings-1]
		rtt := time.Duration(row.sock.RTTUS) * time.Microsecond
		if s.UserTimeout > 0 && items[n].Policy.UserTimeout != 0 || in != nil && in.RTT >= rtt {
			continue
		}
		limits, told := r.snap.kernel.limits[row.sock.NetNS]
		if !told {
			return nil // which a note says
		}
		input := limits.input()
		in = &input
		in.KeepAlive, in.RTT, in.HZ = true, rtt, r.snap.kernel.hz
	}
	if in == nil {
		return nil
	}
	f, err := forecast.For(forecast.SituationInFlight, *in)
	if err != nil {
		return err
	}
	out.InFlight = &f
	return nil
}
