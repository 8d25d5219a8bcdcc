package keepalive_test

import (
	"errors"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

// For every whole second that Within accepts up to 2 h, and some beyond, on
// any tick rate: given up not before d, at latest under 8/63 of d later, by as
// many unanswered probes as the policy says, and by no fewer.
func TestWithinKeepsItsPromise(t *testing.T) {
	const s = time.Second
	var all []time.Duration
	for d := keepalive.LeastWithin; d <= 2*time.Hour; d += s {
		all = append(all, d)
	}
	for d := 2*time.Hour + 7*s; d < keepalive.MostWithin; d += 997 * s {
		all = append(all, d)
	}
	for _, d := range append(all, keepalive.MostWithin) {
		p, err := keepalive.Within(d)
		if err != nil {
			t.Fatalf("%v: %v", d, err)
		}
		if err := p.ValidateFor("linux"); err != nil {
			t.Fatalf("%v: %v", d, err)
		}
		if p.Probes < 3 || p.Idle < p.Interval || p.UserTimeout != d || forecast.DetectionTime(p) != d {
			t.Fatalf("%v: %+v gives up after %v", d, p, forecast.DetectionTime(p))
		}
		for _, hz := range []int{24, 100, 250, 300, 1000, 1024} {
			count := p // by the count alone
			count.UserTimeout = 0
			plain := forecast.Idle(forecast.Input{KeepAlive: true, Policy: count, HZ: hz})
			for _, in := range []forecast.Input{
				{KeepAlive: true, Policy: p, HZ: hz},
				// The peer answered a probe at its last segment.
				{KeepAlive: true, Policy: p, HZ: hz, TimerIn: p.Interval},
			} {
				f := forecast.Idle(in)
				if !f.GivesUp || f.Rule != forecast.UserTimeout || f.Errno != "ETIMEDOUT" || f.Earliest != d || f.Latest > d+d*8/63 {
					t.Fatalf("%v at HZ %d, %+v: %+v", d, hz, in, f)
				}
				if len(f.Steps) != p.Probes {
					t.Fatalf("%v at HZ %d: %d probes, want %d", d, hz, len(f.Steps), p.Probes)
				}
			}
			// The user timeout never makes fewer lost probes fatal than the
			// count does: it is over when the expiry that sends the last probe
			// is at its latest.
			if last := plain.Steps[p.Probes-1].Latest; last >= p.UserTimeout {
				t.Fatalf("%v at HZ %d: the last probe can go out at %v", d, hz, last)
			}
		}
		idle, err := keepalive.WithinIdle(d)
		if err != nil {
			t.Fatal(err)
		}
		f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: idle})
		if idle.UserTimeout >= 0 || f.Rule != forecast.KeepAlive || f.Earliest != d || f.Latest > d+d*8/63 {
			t.Fatalf("WithinIdle(%v) = %+v: %+v", d, idle, f)
		}
	}
}

func TestWithin(t *testing.T) {
	const s = time.Second
	for d, want := range map[time.Duration]keepalive.Policy{
		4 * s:            {Idle: s, Interval: s, Probes: 3, UserTimeout: 4 * s},
		4*s + 1:          {Idle: s, Interval: s, Probes: 4, UserTimeout: 5 * s},
		9 * s:            {Idle: 3 * s, Interval: 2 * s, Probes: 3, UserTimeout: 9 * s},
		90 * s:           {Idle: 35 * s, Interval: 11 * s, Probes: 5, UserTimeout: 90 * s},
		2 * time.Hour:    {Idle: 3140 * s, Interval: 812 * s, Probes: 5, UserTimeout: 7200 * s},
		71 * s:           {Idle: 26 * s, Interval: 9 * s, Probes: 5, UserTimeout: 71 * s},
		20*time.Hour - 1: {Idle: 31435 * s, Interval: 8113 * s, Probes: 5, UserTimeout: 72000 * s},
	} {
		if got, err := keepalive.Within(d); err != nil || got != want {
			t.Errorf("Within(%v) = %+v, %v, want %+v", d, got, err, want)
		}
	}
	for _, d := range []time.Duration{-s, 0, 4*s - 1, 20*time.Hour + 1, 1<<63 - 1} {
		for _, f := range []func(time.Duration) (keepalive.Policy, error){keepalive.Within, keepalive.WithinIdle} {
			var bad *keepalive.PolicyError
			if _, err := f(d); !errors.As(err, &bad) || bad.Field != "within" || bad.Mend == "" {
				t.Errorf("within %v: got %v, want a PolicyError", d, err)
			}
		}
	}
}

func TestWithinDask(t *testing.T) {
	const s = time.Second
	for d, want := range map[time.Duration]keepalive.Policy{
		11 * s:                      {Idle: s, Interval: s},
		25 * s:                      {Idle: 15 * s, Interval: s},
		26 * s:                      {Idle: 6 * s, Interval: 2 * s},
		30 * s:                      {Idle: 10 * s, Interval: 2 * s}, // Dask's own default
		90*s + 900*time.Millisecond: {Idle: 30 * s, Interval: 6 * s}, // fractions are cut off
	} {
		want.Probes, want.UserTimeout = 10, d.Truncate(s)
		if got, err := keepalive.WithinDask(d); err != nil || got != want {
			t.Errorf("WithinDask(%v) = %+v, %v, want %+v", d, got, err, want)
		}
	}
	fewer := false
	for d := 11 * s; d <= 36*time.Hour; d += s {
		p, err := keepalive.WithinDask(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.ValidateFor("linux"); err != nil {
			t.Fatalf("%v: %v", d, err)
		}
		if got := p.Idle + 10*p.Interval; got != d || forecast.DetectionTime(p) != d {
			t.Fatalf("WithinDask(%v) = %+v, which sums up to %v", d, p, got)
		}
		f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: p})
		if f.Earliest < d {
			t.Fatalf("WithinDask(%v) can give up after %v", d, f.Earliest)
		}
		p.UserTimeout = 0
		steps := forecast.Idle(forecast.Input{KeepAlive: true, Policy: p}).Steps
		fewer = fewer || steps[9].Latest >= d
	}
	if !fewer {
		t.Error("the fault in its comment is none: the tenth probe always goes out before the user timeout")
	}
	for _, d := range []time.Duration{11*s - 1, 36*time.Hour + 1} {
		var bad *keepalive.PolicyError
		if _, err := keepalive.WithinDask(d); !errors.As(err, &bad) {
			t.Errorf("WithinDask(%v): got %v, want a PolicyError", d, err)
		}
	}
}
