package forecast_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

// What setting options on a live socket was measured to do.
func TestApply(t *testing.T) {
	const s = time.Second
	host := forecast.Input{Policy: policy(7200, 75, 9, 0), Heard: 8 * s, TimerIn: -1}
	probing := forecast.Input{KeepAlive: true, Policy: policy(5, 2, 3, 0), Heard: 8 * s, TimerIn: s, Probes: 2}
	for _, tt := range []struct {
		name    string
		in      forecast.Input
		changes []forecast.Change
		first   time.Duration // the first probe, or the end if none is left
		end     time.Duration
	}{
		{"options, then keepalive", host, []forecast.Change{forecast.SetIdle(5 * s), forecast.SetInterval(2 * s), forecast.SetProbes(3), forecast.SetKeepAlive(true)}, 5 * s, 11 * s},
		{"keepalive, then idle", host, []forecast.Change{forecast.SetKeepAlive(true), forecast.SetInterval(2 * s), forecast.SetProbes(3), forecast.SetIdle(5 * s)}, 0, 6 * s},
		{"the same idle in the middle of probing", probing, []forecast.Change{forecast.SetIdle(5 * s)}, 0, 2 * s},
		{"a longer idle in the middle of probing", probing, []forecast.Change{forecast.SetIdle(20 * s)}, 12 * s, 14 * s},
		{"interval counts from the pending expiry", probing, []forecast.Change{forecast.SetInterval(10 * s)}, 1 * s, 11 * s},
		{"fewer probes", probing, []forecast.Change{forecast.SetProbes(1)}, 1 * s, 1 * s},
		{"a user timeout that is over", probing, []forecast.Change{forecast.SetUserTimeout(3 * s)}, 1 * s, 1 * s},
		{"off and on keeps the count", probing, []forecast.Change{forecast.SetKeepAlive(false), forecast.SetKeepAlive(true)}, 5 * s, 7 * s},
		{"on when on", probing, []forecast.Change{forecast.SetKeepAlive(true)}, 1 * s, 3 * s},
		{"a lowered sysctl does not arm the timer", forecast.Input{KeepAlive: true, Policy: policy(60, 10, 3, 0), Heard: 8 * s, TimerIn: 52 * s},
			[]forecast.Change{forecast.SetHost(keepalive.Policy{Idle: 5 * s, Interval: s})}, 52 * s, 55 * s},
	} {
		in, err := forecast.Apply(tt.in, tt.changes...)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		f := forecast.Idle(in)
		first := f.Earliest
		if len(f.Steps) > 0 {
			first = f.Steps[0].Earliest
		}
		if first != tt.first || f.Earliest != tt.end {
			t.Errorf("%s: first %v, end %v; want %v, %v", tt.name, first, f.Earliest, tt.first, tt.end)
		}
	}
	if in, err := forecast.Apply(probing, forecast.SetKeepAlive(false)); err != nil || forecast.Idle(in).GivesUp {
		t.Errorf("off: %+v, %v", in, err)
	}
	for _, c := range []forecast.Change{forecast.SetIdle(0), forecast.SetIdle(32768 * s), forecast.SetInterval(-1), forecast.SetProbes(0),
		forecast.SetProbes(128), forecast.SetUserTimeout(-1), forecast.SetHost(keepalive.Policy{Idle: -1}), forecast.SetHost(keepalive.Policy{Probes: 256})} {
		var bad *forecast.InputError
		if _, err := forecast.Apply(probing, c); !errors.As(err, &bad) {
			t.Errorf("%v", err)
		}
	}
}

func TestPlan(t *testing.T) {
	for _, hz := range []int{0, 100, 250, 1000} {
		for _, loss := range []float64{0, 0.01, 0.1, 0.3} {
			for within := 40 * time.Second; within < 2*time.Hour; within += within/7 + time.Second {
				g := forecast.Goal{Within: within, Loss: loss, FalseKill: 1e-4, HZ: hz}
				p, err := forecast.Plan(g)
				if err != nil {
					t.Fatalf("%+v: %v", g, err)
				}
				if err := p.Validate(); err != nil || p.UserTimeout != 0 || p.Probes < forecast.MinProbes {
					t.Fatalf("%+v: %+v, %v", g, p, err)
				}
				f := forecastOf(t, forecast.SituationIdle, forecast.Input{KeepAlive: true, Policy: p, HZ: hz})
				if f.Latest > within || f.Latest < within-within/4-3*time.Second {
					t.Fatalf("%+v: %+v ends %v to %v", g, p, f.Earliest, f.Latest)
				}
				if got := forecast.FalseKill(p, loss); got > g.FalseKill {
					t.Fatalf("%+v: %+v kills with %v", g, p, got)
				}
			}
		}
	}
	for _, g := range []forecast.Goal{{}, {Within: 2 * time.Second}, {Within: 40000 * time.Second}, {Within: time.Minute, Loss: 1}, {Within: time.Minute, Loss: math.NaN()},
		{Within: time.Minute, Loss: 0.99}, {Within: time.Minute, FalseKill: 1}, {Within: time.Minute, HZ: 5}, {Within: time.Minute, Loss: math.Nextafter(1, 0)}} {
		var bad *forecast.InputError
		if p, err := forecast.Plan(g); !errors.As(err, &bad) || bad.Mend == "" {
			t.Errorf("%+v: %+v, %v", g, p, err)
		}
	}
}

// Lateness grows by leaps: where the time hardly suffices, one may pass by all
// idle times but the shortest.
func TestPlanInTheLeastTime(t *testing.T) {
	g := forecast.Goal{Within: 84433 * ms, Loss: 0.6, HZ: 24}
	p, err := forecast.Plan(g)
	if err != nil || p.Idle < time.Second || p.Interval < time.Second {
		t.Fatalf("%+v, %v", p, err)
	}
	if f := forecastOf(t, forecast.SituationIdle, forecast.Input{KeepAlive: true, Policy: p, HZ: g.HZ}); f.Latest > g.Within {
		t.Errorf("%+v ends %v to %v", p, f.Earliest, f.Latest)
	}
}

// 200 living connections, 60 s, idle 2 s, interval 1 s; the measured numbers
// of killed ones are what about 20 cycles with this chance make of them.
func TestFalseKill(t *testing.T) {
	for _, tt := range []struct {
		policy      keepalive.Policy
		loss        float64
		least, most float64
	}{
		{policy(2, 1, 3, 0), 0.1, 0.0068, 0.0069},
		{policy(2, 1, 9, 0), 0.1, 0, 1e-6},
		{policy(2, 1, 3, 2500*ms), 0.1, 0.18999, 0.19001}, // one lost probe is enough
		{policy(5, 2, 3, 9100*ms), 0.5, 0.5625, 0.5626},   // the second expiry can reach it
		{policy(2, 1, 3, 0), 0, 0, 0},
		{policy(2, 1, 3, 0), 2, 1, 1},
	} {
		if got := forecast.FalseKill(tt.policy, tt.loss); got < tt.least || got > tt.most {
			t.Errorf("%+v, loss %v: %v, want %v to %v", tt.policy, tt.loss, got, tt.least, tt.most)
		}
	}
}
