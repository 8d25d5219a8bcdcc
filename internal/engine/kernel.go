package engine

import (
	"math"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/jiffies"
)

// kernel is what forecasts need to know of this host, read once a run.
type kernel struct {
	hz      int
	counter jiffies.Counter   // not known without root
	limits  map[uint32]limits // by network namespace
	taken   time.Time         // when the run began
	mono    time.Duration     // the same on CLOCK_MONOTONIC
}

func readKernel() kernel {
	k := kernel{hz: jiffies.HZ(), limits: map[uint32]limits{}}
	if counter, err := jiffies.Read(); err == nil { // else there are bounds, and no instant
		k.counter = counter
	}
	k.taken, k.mono = time.Now(), jiffies.Monotonic()
	return k
}

// limits are the sysctls of a network namespace that decide when connections
// are given up, as their files have them.
type limits struct {
	retries2, orphanRetries, synRetries, synackRetries, synLinear int
	finTimeout, rtoMax, synackMax                                 time.Duration
	noLossProbe, thinLinear                                       bool
}

// input is a forecast's, with these limits.
func (l limits) input() forecast.Input {
	return forecast.Input{
		Retries2: limitOr(l.retries2), OrphanRetries: l.orphanRetries, SYNRetries: max(1, l.synRetries),
		SYNLinear: limitOr(l.synLinear), FinTimeout: max(l.finTimeout, time.Nanosecond), RTOMax: l.rtoMax, NoLossProbe: l.noLossProbe,
	}
}

// limitOr is a number for an Input, in which 0 is the default and -1 is 0.
func limitOr(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// reading is when the kernel described a connection: before until, by no more
// than window. The zero reading is not known.
type reading struct {
	until  stamp // since kernel.taken
	window uint16
}

func (k *kernel) reading(since, until time.Time) reading {
	if since.IsZero() || until.Before(k.taken) {
		return reading{}
	}
	window := until.Sub(since)/stampUnit + 2 // both ends are cut off
	return reading{until: stampOf(until.Sub(k.taken)) + 1, window: uint16(min(window, math.MaxUint16))}
}

// tickOf is the reading in a tick of which the low half is told, a moment ago.
func (k *kernel) tickOf(low uint32, now time.Time) reading {
	if !k.counter.Known() {
		return k.reading(k.taken, now)
	}
	elapsed := now.Sub(k.taken)
	clock := k.counter.At(k.mono + elapsed)
	tick := time.Second / time.Duration(k.hz)
	ago := time.Duration(int32(uint32(clock.Jiffies)-low)) * tick
	middle := elapsed - clock.Since - ago + tick/2
	if middle < stampUnit { // it was the tick in which the run began
		return reading{until: 1, window: 1}
	}
	return reading{until: stampOf(middle)}
}

// foresee forecasts what was described at the reading, and counts from when
// the run began.
func (k *kernel) foresee(r reading, s forecast.Situation, in forecast.Input) (f forecast.Forecast, ok bool) {
	from, to := (r.until - min(r.until, stamp(r.window))).span(), r.until.span()
	if f, ok = k.exactly(from, to, s, in); ok {
		return f, true
	}
	f, err := forecast.For(s, in)
	if err != nil && s == forecast.SituationIdle {
		f, err = forecast.Idle(in), nil // values that For refuses are clamped
	}
	if err != nil {
		return forecast.Forecast{}, false
	}
	shift(&f, from, to)
	return f, true
}

// exactly uses the tick counter. If it went on while the connection was being
// described, each number that it had is tried.
func (k *kernel) exactly(from, to time.Duration, s forecast.Situation, in forecast.Input) (all forecast.Forecast, ok bool) {
	const most = 3 // ticks; after that there is little to be gained
	tick := time.Second / time.Duration(k.hz)
	if !k.counter.Known() || to == 0 || to-from > most*tick || in.TimerIn < 0 {
		return all, false
	}
	for at := from; at <= to; {
		in.Clock = k.counter.At(k.mono + at)
		f, err := forecast.For(s, in)
		if err != nil {
			return all, false
		}
		if f.Earliest != f.Latest {
			f.Expected = 0
		}
		if shift(&f, at, at); at == from {
			all = f
		}
		all.Earliest, all.Latest = min(all.Earliest, f.Earliest), max(all.Latest, f.Latest)
		if all.Expected != f.Expected {
			all.Expected = 0
		}
		at += tick - in.Clock.Since // the next one
	}
	return all, true
}

// shift moves a forecast from a moment between from and to to the one that
// they count from.
func shift(f *forecast.Forecast, from, to time.Duration) {
	if !f.GivesUp {
		return
	}
	f.Earliest, f.Latest = f.Earliest+from, f.Latest+to
	if f.Expected != 0 {
		f.Expected += from
	}
	for i := range f.Steps {
		f.Steps[i].Earliest += from
		f.Steps[i].Latest += to
	}
	if f.ArticleBound != 0 {
		f.ArticleBound += from
	}
}
