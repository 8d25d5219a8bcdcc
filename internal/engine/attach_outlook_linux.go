package engine

import (
	"errors"

	"deadpeer/forecast"
	"deadpeer/internal/attach"
	"deadpeer/keepalive"
)

// planned is what a row would get, or why not, and that at length.
func (r *run) planned(i uint32, p keepalive.Policy) (_ Outcome, detail string) {
	o := Outcome{Action: actionAttach, Planned: &p}
	found, known := r.settingsOf(r.snap.table.at(i))
	if !known {
		return o, ""
	}
	after, err := attach.After(found, p)
	if err == nil {
		o.Planned = &after.Policy
		return o, ""
	}
	o.Planned, o.Error = nil, err.Error()
	if unfit, ok := errors.AsType[*attach.UnfitError](err); ok {
		detail = unfit.Err.Error()
	}
	return o, detail
}

// findSlowest looks among the connections that have, or would have, a policy
// some of which is their own.
func (r *run) findSlowest(out *Attached, items []attach.Item, rows []uint32) {
	for n, i := range rows {
		p, o := items[n].Policy, r.snap.outcomes[i]
		if p.Idle > 0 && p.Interval > 0 && p.Probes > 0 {
			continue
		}
		now, known := r.settingsOf(r.snap.table.at(i))
		switch {
		case !known || !o.Done && o.Planned == nil:
			continue
		case o.Planned != nil:
			now.Policy = *o.Planned
		}
		out.Slowest = max(out.Slowest, forecast.DetectionTime(now.Policy))
	}
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
		rtt := us(row.sock.RTTUS)
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
