package forecast

import (
	"fmt"
	"time"
)

// window is data that waits for a window (tcp_probe_timer, tcp_send_probe0).
type window struct {
	Input
	answered time.Duration // probes sent before this time after the start are answered
}

// zeroWindow counts from the moment that answers cease.
func zeroWindow(in Input) (Forecast, error) {
	f := over(SituationZeroWindow, in, window{in, in.ProbedFor}.lives()...)
	if f.Earliest < in.ProbedFor {
		return Forecast{}, &InputError{"probed for", in.ProbedFor.String(), span{0, f.Earliest}.String(),
			fmt.Sprintf("give a shorter one: the connection ends by then, its rule being %s, though its peer lives", f.Rule)}
	}
	f.Earliest -= in.ProbedFor
	f.Latest -= in.ProbedFor
	f.Expected = max(0, f.Expected-in.ProbedFor)
	steps := f.Steps[:0]
	for _, s := range f.Steps {
		s.Earliest, s.Latest = max(0, s.Earliest-in.ProbedFor), s.Latest-in.ProbedFor
		if s.Latest >= 0 {
			steps = append(steps, s)
		}
	}
	f.Steps = steps
	return f, nil
}

// zeroWindowAlive ends by a user timeout, or if nobody holds the socket.
func zeroWindowAlive(in Input) Forecast {
	f := over(SituationZeroWindowAlive, in, window{in, maxAge}.run)
	if f.Rule == Never {
		f.GivesUp, f.Earliest, f.Latest, f.Expected = false, 0, 0, 0
	}
	return f
}

// lives are what probing can be; see flight.lives.
func (p window) lives() []func(*run) {
	if !p.found() {
		return []func(*run){p.run}
	}
	return p.resumed(p.resume)
}

func (p window) run(r *run) {
	r.arm(p.when(r, r.ticks(max(p.RTO, minRTO)), 0))
	p.expire(r, 0, 0, r.now)
}

// expire goes on with an expiry after out unanswered probes, backed off as
// often as backoff says. The first probe went out at first, or does now.
func (p window) expire(r *run, out, backoff int, first int64) {
	orphaned := p.Ownership == Orphaned
	base, most := r.ticks(max(p.RTO, minRTO)), r.ticks(p.RTOMax)
	for n := out + 1; ; n++ {
		// An orphan whose backoff is at its limit is not waited for.
		alive := min(r.ticks(p.RTO)<<min(backoff, 20), most) < most
		retries, rule := p.Retries2, Retries
		if orphaned {
			retries, rule = p.orphanRetries(alive), OrphanRetries
		}
		if p.Policy.UserTimeout > 0 && r.now > first && r.now-first >= r.ticks(p.Policy.UserTimeout) {
			r.dies(UserTimeout, p.errno())
			return
		}
		if out >= retries || orphaned && !alive && backoff >= retries {
			r.dies(rule, p.errno())
			return
		}
		r.step(WindowProbe, n)
		out++
		sent := backoff
		backoff = min(backoff+1, p.Retries2)
		if answered := r.elapsed() < p.answered; answered {
			out = 0
			r.now += int64(p.RTT / r.tick())
			r.handling = p.RTT < r.tick() // in the tick of the probe, the wheel's clock is ahead still
		}
		d := p.when(r, base, backoff)
		if p.answered == maxAge && p.Policy.UserTimeout == 0 && p.forEver(r.wheel, backoff, backoff == sent || d == most) {
			r.dies(Never, "")
			return
		}
		if p.Policy.UserTimeout > 0 {
			left := r.ticks(p.Policy.UserTimeout) - (r.now - first)
			d = min(d, max(left, 2)) // TCP_TIMEOUT_MIN
		}
		r.arm(d)
	}
}

// when is the time to a probe (tcp_probe0_when).
func (p window) when(r *run, base int64, backoff int) int64 {
	const limit = 10 // in this module's limits more backoff means the same: the longest
	return backedOff(base, min(backoff, limit), r.ticks(p.RTOMax))
}

// forEver tells whether probes that are always answered never end. level says
// that the time between them has stopped growing.
func (p window) forEver(w wheel, backoff int, level bool) bool {
	if p.Ownership != Orphaned {
		return level
	}
	if backoff < p.Retries2 {
		return false
	}
	alive := min(w.ticks(p.RTO)<<min(backoff, 20), w.ticks(p.RTOMax)) < w.ticks(p.RTOMax)
	return alive || backoff < p.orphanRetries(false)
}

func (p window) errno() string {
	if p.Ownership == Orphaned {
		return ""
	}
	return "ETIMEDOUT"
}
