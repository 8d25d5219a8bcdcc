package forecast

import (
	"slices"
	"time"
)

// run is one life of a connection on the wheel, in ticks, from a start of
// known phase. Situations whose timers are at most tcp_rto_max long are
// simulated for every phase there is; that gives the exact ends.
type run struct {
	wheel
	since      time.Duration // of the start into its tick
	start, now int64         // ticks
	top        uint          // the highest level of the wheel used
	work       int64         // timers armed
	handling   bool          // a timer's handler is running
	behind     bool          // the processor is, with a timer that is due

	// What is decided by less than a tick is tried both ways.
	ahead   int64         // the wheel's clock, when no handler is running: 0 or 1
	blur    time.Duration // of the kernel's milliseconds
	coarse  time.Duration // the distance of the phases that are tried, at least a millisecond
	decided decisions

	steps []instant
	end   instant
	rule  Rule
	errno string
}

type decisions struct{ byAhead, byBlur, byBehind bool }

type instant struct {
	what string
	n    int
	at   int64
}

// arm waits for a timer of d ticks.
func (r *run) arm(d int64) {
	r.now = r.expiry(d)
	r.handling = true
}

// expiry is when a timer armed now for d ticks fires.
func (r *run) expiry(d int64) int64 {
	clock := int64(1)
	if !r.handling {
		clock = r.ahead
		r.decided.byAhead = r.decided.byAhead || level(d) != level(d-1)
	}
	n := level(d - clock)
	r.work++
	r.top = max(r.top, n)
	return fires(r.now+d, n)
}

func (r *run) step(what string, n int) {
	if len(r.steps) < MaxSteps {
		r.steps = append(r.steps, instant{what, n, r.now})
	}
}

func (r *run) dies(rule Rule, errno string) { r.end, r.rule, r.errno = instant{at: r.now}, rule, errno }

// elapsed is the time since the start.
func (r *run) elapsed() time.Duration { return r.time(r.now-r.start) - r.since }

// reached tells whether milliseconds taken at two moments are as far apart
// as limit: they are cut off, so that one more or less depends on luck, and so
// does more in phases that are not tried.
func (r *run) reached(elapsed, limit time.Duration) bool {
	if d := elapsed - limit; d >= -r.coarse && d <= r.coarse {
		r.decided.byBlur = true
	}
	return elapsed+r.blur >= limit
}

// over is the forecast of what lives do, over all phases of the ticks or at
// the one that is known. Several lives are what cannot be told apart.
func over(s Situation, in Input, lives ...func(*run)) Forecast {
	w := wheel{in.HZ}
	f := Forecast{Situation: s, GivesUp: true, HZ: w.hz}
	sum := summary{wheel: w, forecast: &f}
	r := run{wheel: w}
	coarse := time.Millisecond
	try := func(start int64, since time.Duration, ahead int64, blur time.Duration) (decided decisions) {
		for _, life := range lives {
			for _, behind := range [...]bool{false, true} {
				if behind && !r.decided.byBehind {
					break
				}
				r = run{wheel: w, start: start, now: start, since: since, ahead: ahead, blur: blur, coarse: coarse, behind: behind, top: r.top, steps: r.steps[:0]}
				life(&r)
				sum.add(&r)
			}
			decided.byAhead = decided.byAhead || r.decided.byAhead
			decided.byBlur = decided.byBlur || r.decided.byBlur
		}
		return decided
	}
	if in.Clock.Jiffies != 0 {
		try(int64(in.Clock.Jiffies%(1<<32)), in.Clock.Since, 0, 0)
		if f.Earliest == f.Latest {
			f.Expected = f.Earliest
		}
		return f
	}
	// Where milliseconds since the start decide, each of a tick's is tried.
	moments := []time.Duration{0, w.tick()}
	if s == SituationSynSent && in.Policy.UserTimeout > 0 {
		for d := time.Duration(0); d < w.tick(); d += time.Millisecond {
			moments = append(moments, d, d+1)
		}
	}
	// Lives of millions of timers are tried for some phases only; between two
	// of them nothing differs by more than their distance.
	budget := int64(4 << 20)
	if in.found() {
		budget = 1 << 8 // there may be a hundred thousand of them
	}
	stride := int64(1)
	for phase := int64(0); phase < granule(r.top); phase += stride {
		for _, since := range moments {
			decided := try(phase, since, 0, 0)
			if decided.byAhead {
				try(phase, since, 1, 0)
			}
			if decided.byBlur {
				try(phase, since, 0, coarse)
				try(phase, since, 0, -coarse)
			}
		}
		for stride < granule(r.top) && granule(r.top)/stride*r.work > budget {
			stride *= 8
			coarse = w.time(stride)
		}
	}
	if stride > 1 {
		f.widen(w.time(stride))
	}
	return f
}

func (f *Forecast) widen(by time.Duration) {
	f.Earliest, f.Latest = max(0, f.Earliest-by), f.Latest+by
	for i := range f.Steps {
		f.Steps[i].Earliest, f.Steps[i].Latest = max(0, f.Steps[i].Earliest-by), f.Steps[i].Latest+by
	}
}

// summary gathers runs into the forecast that covers them all.
type summary struct {
	wheel
	forecast *Forecast
	runs     int
}

func (s *summary) add(r *run) {
	f := s.forecast
	end := max(0, r.time(r.end.at-r.start)-r.since)
	if s.runs++; s.runs == 1 {
		f.Rule, f.Errno, f.Earliest, f.Latest = r.rule, r.errno, end, end
	}
	f.Earliest, f.Latest = min(f.Earliest, end), max(f.Latest, end)
	for i, step := range r.steps {
		s.merge(i, step.what, step.n, max(0, r.time(step.at-r.start)-r.since))
	}
}

// merge widens a step of the forecast; runs mostly have it at the same place.
func (s *summary) merge(i int, what string, n int, at time.Duration) {
	steps := s.forecast.Steps
	if i >= len(steps) || steps[i].What != what || steps[i].N != n {
		if i = slices.IndexFunc(steps, func(s Step) bool { return s.What == what && s.N == n }); i < 0 {
			i = len(steps)
		}
	}
	if i == len(steps) {
		if len(steps) < MaxSteps {
			s.forecast.Steps = append(steps, Step{what, n, at, at})
		}
		return
	}
	steps[i].Earliest, steps[i].Latest = min(steps[i].Earliest, at), max(steps[i].Latest, at)
}
