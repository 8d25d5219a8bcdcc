package forecast_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

const ms = time.Millisecond

func policy(idle, interval, probes int, userTimeout time.Duration) keepalive.Policy {
	return keepalive.Policy{
		Idle: time.Duration(idle) * time.Second, Interval: time.Duration(interval) * time.Second,
		Probes: probes, UserTimeout: userTimeout,
	}
}

// What Linux 6.18 was measured to do at HZ=250.
func TestIdleMeasured(t *testing.T) {
	for _, tt := range []struct {
		policy           keepalive.Policy
		measured         time.Duration
		earliest, latest time.Duration
		nominal          time.Duration
		rule             forecast.Rule
	}{
		{policy(5, 2, 3, 0), 11236 * ms, 11 * time.Second, 11352 * ms, 11 * time.Second, forecast.KeepAlive},
		{policy(1, 1, 1, 0), 2050 * ms, 2 * time.Second, 2064 * ms, 2 * time.Second, forecast.KeepAlive},
		{policy(15, 10, 5, 0), 66373 * ms, 65 * time.Second, 66536 * ms, 65 * time.Second, forecast.KeepAlive},
		{policy(130, 20, 1, 0), 163233 * ms, 150 * time.Second, 168432 * ms, 150 * time.Second, forecast.KeepAlive},
		{policy(3, 2, 3, 0), 9062 * ms, 9 * time.Second, 9352 * ms, 9 * time.Second, forecast.KeepAlive}, // CLOSE-WAIT
		{policy(5, 2, 3, 7100*ms), 7208 * ms, 7100 * ms, 9320 * ms, 9 * time.Second, forecast.UserTimeout},
		{policy(5, 2, 3, 9100*ms), 9219 * ms, 9100 * ms, 11352 * ms, 11 * time.Second, forecast.UserTimeout},
		{policy(5, 2, 3, 30*time.Second), 31396 * ms, 31 * time.Second, 31672 * ms, 31 * time.Second, forecast.UserTimeout},
	} {
		t.Run(fmt.Sprint(tt.policy), func(t *testing.T) {
			f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: tt.policy, HZ: 250})
			if !f.GivesUp || f.Rule != tt.rule || f.Errno != "ETIMEDOUT" {
				t.Errorf("got %v, %v, %q; want %v with ETIMEDOUT", f.GivesUp, f.Rule, f.Errno, tt.rule)
			}
			if f.Earliest != tt.earliest || f.Latest != tt.latest {
				t.Errorf("got %v to %v, want %v to %v", f.Earliest, f.Latest, tt.earliest, tt.latest)
			}
			if tt.measured < f.Earliest || tt.measured > f.Latest {
				t.Errorf("measured %v, forecast %v to %v", tt.measured, f.Earliest, f.Latest)
			}
			if got := forecast.DetectionTime(tt.policy); got != tt.nominal {
				t.Errorf("DetectionTime %v, want %v", got, tt.nominal)
			}
		})
	}
}

func TestIdleNever(t *testing.T) {
	f := forecast.Idle(forecast.Input{Policy: policy(5, 2, 3, 7*time.Second)})
	if f.GivesUp || f.Rule != forecast.Never || f.Errno != "" || f.Earliest != 0 || f.Latest != 0 || f.Steps != nil {
		t.Errorf("keepalive off: got %+v, want never", f)
	}
}

func TestIdleRemaining(t *testing.T) {
	p := policy(60, 10, 3, 0)
	for _, tt := range []struct {
		name             string
		in               forecast.Input
		earliest, latest time.Duration
		steps            int
	}{
		{"a while idle", forecast.Input{Policy: p, Heard: 20 * time.Second, TimerIn: 40 * time.Second},
			70 * time.Second, 40*time.Second + 2048*ms + 3*10256*ms, 3},
		{"the timer arms the rest", forecast.Input{Policy: p, Heard: 20 * time.Second, TimerIn: 5 * time.Second},
			70 * time.Second, 40*time.Second + 2048*ms + 3*10256*ms, 3},
		{"two probes unanswered", forecast.Input{Policy: p, Heard: 75 * time.Second, TimerIn: 5 * time.Second, Probes: 2},
			15 * time.Second, 5*time.Second + 2048*ms + 10256*ms, 1},
		{"all probes unanswered", forecast.Input{Policy: p, Heard: 85 * time.Second, TimerIn: 5 * time.Second, Probes: 3},
			5 * time.Second, 5*time.Second + 2048*ms, 0},
		{"timer unknown", forecast.Input{Policy: p, Heard: 20 * time.Second, TimerIn: -1},
			70 * time.Second, 60*time.Second + 2048*ms + 3*10256*ms, 3},
		{"answered a probe, interval above idle", forecast.Input{Policy: policy(1, 10, 2, 0), TimerIn: 10 * time.Second},
			30 * time.Second, 3 * 10256 * ms, 2},
		{"user timeout over already", forecast.Input{Policy: policy(60, 10, 3, 30*time.Second), Heard: 65 * time.Second, TimerIn: 4 * time.Second, Probes: 1},
			4 * time.Second, 4*time.Second + 2048*ms, 0},
		{"user timeout over, but no probe out", forecast.Input{Policy: policy(60, 10, 3, 30*time.Second), Heard: 59 * time.Second, TimerIn: 1 * time.Second},
			11 * time.Second, 1*time.Second + 2048*ms + 10256*ms, 1},
		{"no probes allowed", forecast.Input{Policy: policy(60, 10, 0, 0)},
			60 * time.Second, 62048 * ms, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.KeepAlive = true
			f := forecast.Idle(tt.in)
			if f.Earliest != tt.earliest || f.Latest != tt.latest || len(f.Steps) != tt.steps {
				t.Errorf("got %v to %v, %d steps; want %v to %v, %d steps", f.Earliest, f.Latest, len(f.Steps), tt.earliest, tt.latest, tt.steps)
			}
			for i, s := range f.Steps {
				if s.N != tt.in.Probes+i+1 {
					t.Errorf("step %d is probe %d, want %d", i, s.N, tt.in.Probes+i+1)
				}
			}
		})
	}
}

// simulate is tcp_keepalive_timer on the timer wheel, jiffy by jiffy, for a
// peer last heard at jiffy 0 of the given phase; it tells when the socket dies.
func simulate(phase, idle, interval, userTimeout int64, probes int) int64 {
	now, out := phase, 0
	arm := func(d int64) {
		n := 0
		for d >= 63<<(3*n) {
			n++
		}
		now = ((now+d)>>(3*n) + 1) << (3 * n)
	}
	for arm(idle); ; arm(interval) {
		if elapsed := now - phase; userTimeout > 0 && elapsed >= userTimeout && out > 0 || userTimeout == 0 && out >= probes {
			return elapsed
		}
		out++
	}
}

// The bounds hold whatever the phase of the wheel, and are not far apart.
func TestIdleAgainstWheel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		hz := []int64{100, 250, 300, 1000}[rng.IntN(4)]
		idle, interval, probes := 1+rng.IntN(1<<rng.IntN(13)), 1+rng.IntN(1<<rng.IntN(8)), 1+rng.IntN(12)
		var userTimeout time.Duration
		if rng.IntN(2) == 0 {
			userTimeout = time.Duration(rng.Int64N(int64(idle+interval*probes)*1000)+1) * ms
		}
		jiffies := func(d time.Duration) int64 { return (d.Milliseconds()*hz + 999) / 1000 }
		at := simulate(rng.Int64N(1<<32), int64(idle)*hz, int64(interval)*hz, jiffies(userTimeout), probes)
		got := time.Duration(at) * time.Second / time.Duration(hz)
		tick := time.Second / time.Duration(hz)

		f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: policy(idle, interval, probes, userTimeout), HZ: int(hz)})
		if got < f.Earliest-tick || got > f.Latest+tick {
			t.Fatalf("HZ %d, idle %d, interval %d, probes %d, user timeout %v: dies after %v, forecast %v to %v",
				hz, idle, interval, probes, userTimeout, got, f.Earliest, f.Latest)
		}
		if slack := f.Latest - f.Earliest; userTimeout == 0 && slack > f.Earliest/7+time.Duration(probes+1)*tick {
			t.Fatalf("HZ %d, idle %d, interval %d, probes %d: %v to %v is wider than an eighth allows", hz, idle, interval, probes, f.Earliest, f.Latest)
		}
	}
}

func TestHostileInput(t *testing.T) {
	durations := []time.Duration{math.MinInt64, -1, 0, 1, time.Second, 100000 * time.Second, math.MaxInt64}
	ints := []int{math.MinInt, -1, 0, 1, 255, math.MaxInt}
	for _, idle := range durations {
		for _, interval := range durations {
			for _, userTimeout := range durations {
				for _, heard := range durations {
					for _, timer := range durations {
						for _, n := range ints {
							in := forecast.Input{KeepAlive: true, HZ: n, Heard: heard, TimerIn: timer, Probes: n,
								Policy: keepalive.Policy{Idle: idle, Interval: interval, Probes: n, UserTimeout: userTimeout}}
							check(t, in, forecast.Idle(in))
							if d := forecast.DetectionTime(in.Policy); d < 0 {
								t.Fatalf("DetectionTime(%+v) = %v", in.Policy, d)
							}
						}
					}
				}
			}
		}
	}
}

func check(t *testing.T, in forecast.Input, f forecast.Forecast) {
	t.Helper()
	if f.Earliest < 0 || f.Latest < f.Earliest || f.ArticleBound < 0 || len(f.Steps) > forecast.MaxSteps {
		t.Fatalf("%+v: got %v to %v, bound %v, %d steps", in, f.Earliest, f.Latest, f.ArticleBound, len(f.Steps))
	}
	last := forecast.Step{Earliest: -1, Latest: -1}
	for _, s := range f.Steps {
		if s.Earliest <= last.Earliest || s.Latest < s.Earliest || s.Latest > f.Latest {
			t.Fatalf("%+v: step %+v after %+v, end %v", in, s, last, f.Latest)
		}
		last = s
	}
}

func FuzzIdle(f *testing.F) {
	f.Add(int64(5e9), int64(2e9), 3, int64(0), 250, int64(0), int64(0), 0)
	f.Add(int64(72e11), int64(75e9), 9, int64(30e9), 1000, int64(1e9), int64(-1), 2)
	f.Fuzz(func(t *testing.T, idle, interval int64, probes int, userTimeout int64, hz int, heard, timer int64, out int) {
		in := forecast.Input{KeepAlive: true, HZ: hz, Heard: time.Duration(heard), TimerIn: time.Duration(timer), Probes: out,
			Policy: keepalive.Policy{Idle: time.Duration(idle), Interval: time.Duration(interval), Probes: probes, UserTimeout: time.Duration(userTimeout)}}
		check(t, in, forecast.Idle(in))
	})
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		in   forecast.Input
		want string
	}{
		{
			forecast.Input{KeepAlive: true, Policy: policy(5, 2, 2, 0)},
			`{"situation":"idle","gives_up":true,"earliest_s":9,"latest_s":9.32,"rule":"keepalive","errno":"ETIMEDOUT","article_bound_s":11,` +
				`"steps":[{"what":"probe","n":1,"earliest_s":5,"latest_s":5.256},{"what":"probe","n":2,"earliest_s":7,"latest_s":7.288}]}`,
		},
		{
			forecast.Input{Policy: policy(5, 2, 2, 0)},
			`{"situation":"idle","gives_up":false,"earliest_s":null,"latest_s":null,"rule":"never","errno":null,"article_bound_s":null,"steps":[]}`,
		},
	} {
		got, err := json.Marshal(forecast.Idle(tt.in).Report())
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != tt.want {
			t.Errorf("\n got %s\nwant %s", got, tt.want)
		}
	}
}

func ExampleIdle() {
	f := forecast.Idle(forecast.Input{
		KeepAlive: true,
		Policy:    keepalive.Policy{Idle: 5 * time.Second, Interval: 2 * time.Second, Probes: 3},
	})
	fmt.Println(f.Rule, f.Earliest, f.Latest)
	// Output: keepalive 11s 11.352s
}
