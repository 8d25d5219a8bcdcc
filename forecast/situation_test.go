package forecast_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

func forecastOf(t *testing.T, s forecast.Situation, in forecast.Input) forecast.Forecast {
	t.Helper()
	f, err := forecast.For(s, in)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What Linux 6.18 was measured to do at HZ=250, a local network's round trip.
func TestSituationsMeasured(t *testing.T) {
	lan := func(in forecast.Input) forecast.Input { in.RTO = 204 * ms; return in }
	alive := func(p keepalive.Policy) forecast.Input { return forecast.Input{KeepAlive: true, Policy: p} }
	for _, tt := range []struct {
		situation forecast.Situation
		in        forecast.Input
		measured  time.Duration
		rule      forecast.Rule
		errno     string
	}{
		{forecast.SituationIdle, alive(policy(5, 2, 3, 0)), 11236 * ms, forecast.KeepAlive, "ETIMEDOUT"},
		{forecast.SituationIdle, alive(policy(1, 1, 1, 0)), 2050 * ms, forecast.KeepAlive, "ETIMEDOUT"},
		{forecast.SituationIdle, alive(policy(15, 10, 5, 0)), 66373 * ms, forecast.KeepAlive, "ETIMEDOUT"},
		{forecast.SituationIdle, alive(policy(130, 20, 1, 0)), 163233 * ms, forecast.KeepAlive, "ETIMEDOUT"},
		{forecast.SituationIdle, alive(policy(5, 2, 3, 7100*ms)), 7208 * ms, forecast.UserTimeout, "ETIMEDOUT"},
		{forecast.SituationIdle, alive(policy(5, 2, 3, 9100*ms)), 9219 * ms, forecast.UserTimeout, "ETIMEDOUT"},
		{forecast.SituationIdle, alive(policy(5, 2, 3, 30*time.Second)), 31396 * ms, forecast.UserTimeout, "ETIMEDOUT"},
		{forecast.SituationCloseWait, alive(policy(3, 2, 3, 0)), 9062 * ms, forecast.KeepAlive, "ETIMEDOUT"},
		{forecast.SituationInFlight, lan(forecast.Input{}), 939371 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationInFlight, lan(forecast.Input{Policy: policy(0, 0, 0, 5*time.Second)}), 5431 * ms, forecast.UserTimeout, "ETIMEDOUT"},
		{forecast.SituationInFlight, lan(forecast.Input{Retries2: 3}), 6750 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationInFlight, forecast.Input{RTT: 10 * ms, Retries2: 3}, 3470 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationZeroWindow, forecast.Input{RTO: 212 * ms, Retries2: 3, ProbedFor: 100 * ms}, 3133 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationZeroWindowAlive, lan(forecast.Input{Policy: policy(0, 0, 0, 5*time.Second)}), 5228 * ms, forecast.UserTimeout, "ETIMEDOUT"},
		{forecast.SituationZeroWindowAlive, forecast.Input{RTO: 212 * ms, RTOMax: time.Second, Ownership: forecast.Orphaned}, 2548 * ms, forecast.OrphanRetries, ""},
		{forecast.SituationSynSent, forecast.Input{SYNRetries: 3}, 19586 * ms, forecast.SYNRetries, "ETIMEDOUT"},
		{forecast.SituationSynSent, forecast.Input{NoNeighbour: true}, 3067 * ms, forecast.NoNeighbour, "EHOSTUNREACH"},
		{forecast.SituationSynReceived, forecast.Input{SYNRetries: 3}, 15480 * ms, forecast.SYNACKRetries, ""},
		{forecast.SituationSynReceived, forecast.Input{SYNRetries: 3, RTOMax: 2 * time.Second}, 7072 * ms, forecast.SYNACKRetries, ""},
		{forecast.SituationFinWait1, lan(forecast.Input{OrphanRetries: 3}), 6712 * ms, forecast.OrphanRetries, ""},
		{forecast.SituationFinWait1, lan(forecast.Input{Retries2: 3, Ownership: forecast.Held}), 6651 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationFinWait2, forecast.Input{FinTimeout: 5 * time.Second}, 5066 * ms, forecast.FinTimeout, ""},
		{forecast.SituationFinWait2, forecast.Input{FinTimeout: 62 * time.Second}, 4034 * ms, forecast.FinTimeout, ""},
		{forecast.SituationLastAck, lan(forecast.Input{OrphanRetries: 1}), 1684 * ms, forecast.OrphanRetries, ""},
		{forecast.SituationRebooted, alive(policy(3, 1, 1, 0)), 3024 * ms, forecast.Reset, "ECONNRESET"},
		{forecast.SituationMidProbeWrite, lan(forecast.Input{Retries2: 3}), 6643 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationARPFailing, lan(forecast.Input{Retries2: 3}), 3075 * ms, forecast.Retries, "ETIMEDOUT"},
		{forecast.SituationARPFailing, lan(forecast.Input{Retries2: 5}), 15353 * ms, forecast.Retries, "EHOSTUNREACH"},
		{forecast.SituationARPFailing, lan(forecast.Input{Retries2: 3, IPv6: true}), 4719 * ms, forecast.Retries, "EHOSTUNREACH"},
	} {
		f := forecastOf(t, tt.situation, tt.in)
		if !f.GivesUp || tt.measured < f.Earliest || tt.measured > f.Latest || f.Rule != tt.rule || f.Errno != tt.errno {
			t.Errorf("%s %+v: %v to %v by %s, %q; measured %v by %s, %q",
				tt.situation, tt.in, f.Earliest, f.Latest, f.Rule, f.Errno, tt.measured, tt.rule, tt.errno)
		}
	}
}

func TestForNever(t *testing.T) {
	for _, tt := range []struct {
		situation forecast.Situation
		in        forecast.Input
		steps     int
	}{
		{forecast.SituationIdle, forecast.Input{}, 0},
		{forecast.SituationRebooted, forecast.Input{}, 0},
		{forecast.SituationFinWait2, forecast.Input{Ownership: forecast.Held}, 0},
		{forecast.SituationZeroWindowAlive, forecast.Input{}, 10}, // from then on every two minutes
		{forecast.SituationZeroWindowAlive, forecast.Input{Ownership: forecast.Orphaned, Retries2: 4}, 4},
		{forecast.SituationZeroWindowAlive, forecast.Input{Ownership: forecast.Orphaned, Retries2: 4, OrphanRetries: 5, RTOMax: time.Second}, 4},
		{forecast.SituationIdle, forecast.Input{OS: forecast.Windows}, 0},
	} {
		f := forecastOf(t, tt.situation, tt.in)
		if f.GivesUp || f.Rule != forecast.Never || f.Errno != "" || f.Latest != 0 || len(f.Steps) != tt.steps {
			t.Errorf("%s: %+v, want never and %d steps", tt.situation, f, tt.steps)
		}
	}
}

func TestForTimeline(t *testing.T) {
	f := forecastOf(t, forecast.SituationInFlight, forecast.Input{RTO: 204 * ms, Retries2: 2, HZ: 250})
	want := []forecast.Step{
		{What: forecast.TailLossProbe, N: 1, Earliest: 204 * ms, Latest: 208 * ms},
		{What: forecast.Retransmission, N: 1, Earliest: 412 * ms, Latest: 416 * ms},
		{What: forecast.Retransmission, N: 2, Earliest: 824 * ms, Latest: 856 * ms},
		{What: forecast.Retransmission, N: 3, Earliest: 1656 * ms, Latest: 1688 * ms},
	}
	if fmt.Sprint(f.Steps) != fmt.Sprint(want) || f.Earliest != 3320*ms || f.Latest != 3352*ms || f.ArticleBound != 0 {
		t.Errorf("%+v", f)
	}
}

// An idle forecast holds for a timer armed at the last segment, and for one
// armed before, at any phase; with the phase known it is the very tick.
func TestForIdleAgainstWheel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		hz := []int64{100, 250, 300, 1000}[rng.IntN(4)]
		idle, interval, probes := 1+rng.IntN(1<<rng.IntN(13)), 1+rng.IntN(1<<rng.IntN(12)), 1+rng.IntN(12)
		var userTimeout time.Duration
		if rng.IntN(2) == 0 {
			userTimeout = time.Duration(rng.Int64N(int64(idle+interval*probes)*1000)+1) * ms
		}
		phase := rng.Int64N(1<<31) + 1
		before := rng.Int64N(int64(idle) * hz) // the timer was armed this long before the last segment
		at := simulateArmed(phase, before, int64(idle)*hz, int64(interval)*hz, (userTimeout.Milliseconds()*hz+999)/1000, probes)
		onTime := simulateArmed(phase, 0, int64(idle)*hz, int64(interval)*hz, (userTimeout.Milliseconds()*hz+999)/1000, probes)
		in := forecast.Input{KeepAlive: true, Policy: policy(idle, interval, probes, userTimeout), HZ: int(hz)}
		f := forecastOf(t, forecast.SituationIdle, in)
		tick := time.Second / time.Duration(hz)
		for _, n := range []int64{at, onTime} {
			if got := time.Duration(n) * time.Second / time.Duration(hz); got < f.Earliest || got > f.Latest {
				t.Fatalf("HZ %d, %+v, armed %d ticks before: dies after %v, forecast %v to %v", hz, in.Policy, before, got, f.Earliest, f.Latest)
			}
		}
		if loose := forecast.Idle(in); f.Earliest < loose.Earliest-tick || f.Latest > loose.Latest+tick {
			t.Fatalf("%+v: %v to %v, Idle has %v to %v", in.Policy, f.Earliest, f.Latest, loose.Earliest, loose.Latest)
		}
		in.Clock = forecast.Clock{Jiffies: uint64(phase), Since: tick / 3}
		f = forecastOf(t, forecast.SituationIdle, in)
		want := time.Duration(onTime)*time.Second/time.Duration(hz) - tick/3
		if d := f.Expected - want; d < -1 || d > 1 || f.Earliest != f.Latest {
			t.Fatalf("HZ %d, %+v, phase %d: expected %v, %v to %v, want %v", hz, in.Policy, phase, f.Expected, f.Earliest, f.Latest, want)
		}
	}
}

// simulateArmed is tcp_keepalive_timer with a timer armed before the last
// segment, which came at jiffy phase.
func simulateArmed(phase, before, idle, interval, userTimeout int64, probes int) int64 {
	now, out := phase-before, 0
	arm := func(d, clock int64) {
		n := 0
		for d-clock >= 63<<(3*n) {
			n++
		}
		now = ((now+d)>>(3*n) + 1) << (3 * n)
	}
	for arm(idle, 0); ; {
		elapsed := now - phase
		switch {
		case elapsed < idle:
			arm(idle-elapsed, 1)
			continue
		case userTimeout > 0 && elapsed >= userTimeout && out > 0, userTimeout == 0 && out >= probes:
			return elapsed
		}
		out++
		arm(interval, 1)
	}
}

// A live connection whose timer's level leaves no doubt has one instant.
func TestForLiveAtKnownPhase(t *testing.T) {
	in := forecast.Input{KeepAlive: true, Policy: policy(60, 10, 3, 0), HZ: 250, Heard: 75 * time.Second, TimerIn: 5 * time.Second,
		Probes: 2, Clock: forecast.Clock{Jiffies: 1 << 20}}
	f := forecastOf(t, forecast.SituationIdle, in)
	// Due in 1250 ticks, in buckets of 64 since it was armed for 2500; then 2500 more.
	if want := (1280 + 2560) * 4 * ms; f.Expected != want || f.Earliest != want || f.Latest != want || len(f.Steps) != 1 {
		t.Errorf("%+v, want %v", f, want)
	}
	in.Probes, in.Heard = 0, 55*time.Second // armed for anything from 5 s to 60 s
	f = forecastOf(t, forecast.SituationIdle, in)
	if f.Expected != f.Latest || f.Earliest >= f.Latest || f.Expected != (1536+3*2560)*4*ms {
		t.Errorf("%+v", f)
	}
}

// With the phase known, the forecast of every situation is within the bounds
// without; and as wide as the bounds are over all phases.
func TestClockWithinBounds(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, s := range forecast.Situations() {
		for range 20 {
			in := forecast.Input{KeepAlive: true, Policy: policy(1+rng.IntN(20), 1+rng.IntN(5), 1+rng.IntN(5), 0), HZ: []int{100, 250, 1000}[rng.IntN(3)],
				RTT: time.Duration(rng.IntN(100)) * ms, Retries2: 1 + rng.IntN(6), SYNRetries: 1 + rng.IntN(4), OrphanRetries: 1 + rng.IntN(4), IPv6: rng.IntN(2) == 0}
			if rng.IntN(2) == 0 {
				in.Policy.UserTimeout = time.Duration(1+rng.IntN(20000)) * ms
			}
			bounds := forecastOf(t, s, in)
			for range 30 {
				in.Clock = forecast.Clock{Jiffies: rng.Uint64() | 1, Since: time.Duration(rng.Int64N(int64(time.Second / time.Duration(in.HZ))))}
				f := forecastOf(t, s, in)
				if f.Earliest < bounds.Earliest || f.Latest > bounds.Latest || f.GivesUp != bounds.GivesUp {
					t.Fatalf("%s %+v: %v to %v, bounds %v to %v", s, in, f.Earliest, f.Latest, bounds.Earliest, bounds.Latest)
				}
			}
		}
	}
}

func TestForElsewhere(t *testing.T) {
	for system, errno := range map[string]string{forecast.MacOS: "ETIMEDOUT", forecast.FreeBSD: "ETIMEDOUT", forecast.OpenBSD: "ETIMEDOUT", forecast.Windows: "WSAENETRESET"} {
		in := forecast.Input{OS: system, KeepAlive: true, Policy: policy(60, 5, 8, 3*time.Second)}
		f := forecastOf(t, forecast.SituationIdle, in)
		if !f.Documented || f.Errno != errno || f.Earliest != 100*time.Second || f.Latest != 100*time.Second || len(f.Steps) != 8 {
			t.Errorf("%s: %+v", system, f)
		}
		if _, err := forecast.For(forecast.SituationInFlight, in); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s in flight: %v", system, err)
		}
	}
}

func TestForRefuses(t *testing.T) {
	for field, tt := range map[string]struct {
		situation forecast.Situation
		in        forecast.Input
	}{
		"situation":         {"asleep", forecast.Input{}},
		"os":                {forecast.SituationIdle, forecast.Input{OS: "plan9"}},
		"idle":              {forecast.SituationIdle, forecast.Input{Policy: policy(-1, 1, 1, 0)}},
		"interval":          {forecast.SituationIdle, forecast.Input{Policy: policy(1, 1e6, 1, 0)}},
		"probes":            {forecast.SituationIdle, forecast.Input{Policy: policy(1, 1, 256, 0)}},
		"user timeout":      {forecast.SituationIdle, forecast.Input{Policy: policy(1, 1, 1, 1<<31*ms)}},
		"heard":             {forecast.SituationIdle, forecast.Input{Heard: -1}},
		"unanswered probes": {forecast.SituationIdle, forecast.Input{Probes: -1}},
		"hz":                {forecast.SituationIdle, forecast.Input{HZ: 10}},
		"clock since":       {forecast.SituationIdle, forecast.Input{Clock: forecast.Clock{Jiffies: 1, Since: time.Second}}},
		"rtt":               {forecast.SituationInFlight, forecast.Input{RTT: -1}},
		"rto":               {forecast.SituationInFlight, forecast.Input{RTO: time.Hour}},
		"rto max":           {forecast.SituationInFlight, forecast.Input{RTOMax: 500 * ms}},
		"packets":           {forecast.SituationInFlight, forecast.Input{Packets: -1}},
		"retries2":          {forecast.SituationInFlight, forecast.Input{Retries2: 256}},
		"syn retries":       {forecast.SituationSynSent, forecast.Input{SYNRetries: -1}},
		"orphan retries":    {forecast.SituationFinWait1, forecast.Input{OrphanRetries: -1}},
		"fin timeout":       {forecast.SituationFinWait2, forecast.Input{FinTimeout: -1}},
		"linger2":           {forecast.SituationFinWait2, forecast.Input{Linger2: 3 * time.Minute}},
		"probed for":        {forecast.SituationZeroWindow, forecast.Input{ProbedFor: 9 * time.Second, Policy: policy(0, 0, 0, 5*time.Second)}},
		"ownership":         {forecast.SituationFinWait2, forecast.Input{Ownership: 9}},
	} {
		_, err := forecast.For(tt.situation, tt.in)
		bad, ok := errors.AsType[*forecast.InputError](err)
		if !ok || bad.Field != field || bad.Value == "" || bad.Allowed == "" || bad.Mend == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func FuzzFor(f *testing.F) {
	for i := range len(forecast.Situations()) {
		f.Add(i, int64(5e9), int64(2e9), 3, int64(0), 250, int64(0), int64(0), 0, int64(204e6), int64(0), 3, int64(0), 0, uint64(0))
		f.Add(i, int64(1), int64(1), 255, int64(1e9), 1000, int64(1), int64(-1), 2, int64(1), int64(1e9), -1, int64(3e9), 2, uint64(77))
	}
	f.Fuzz(func(t *testing.T, situation int, idle, interval int64, probes int, userTimeout int64, hz int, heard, timer int64, out int,
		rto, rtoMax int64, retries int, wait int64, ownership int, jiffies uint64) {
		list := forecast.Situations()
		s := list[uint(situation)%uint(len(list))]
		in := forecast.Input{KeepAlive: true, HZ: hz, Heard: time.Duration(heard), TimerIn: time.Duration(timer), Probes: out,
			Policy: keepalive.Policy{Idle: time.Duration(idle), Interval: time.Duration(interval), Probes: probes, UserTimeout: time.Duration(userTimeout)},
			RTO:    time.Duration(rto), RTT: time.Duration(rto / 2), RTOMax: time.Duration(rtoMax), Retries2: retries, SYNRetries: retries, SYNLinear: out,
			OrphanRetries: retries, FinTimeout: time.Duration(wait), Linger2: time.Duration(wait), ProbedFor: time.Duration(wait),
			Ownership: forecast.Ownership(ownership), Packets: probes, IPv6: out%2 == 0, NoNeighbour: retries%2 == 0, NoLossProbe: hz%2 == 0,
			Clock: forecast.Clock{Jiffies: jiffies}}
		got, err := forecast.For(s, in)
		if err != nil {
			if _, ok := errors.AsType[*forecast.InputError](err); !ok {
				t.Fatal(err)
			}
			return
		}
		if got.Earliest < 0 || got.Latest < got.Earliest || got.ArticleBound < 0 || len(got.Steps) > forecast.MaxSteps || got.Rule == "" ||
			got.GivesUp == (got.Rule == forecast.Never) {
			t.Fatalf("%s %+v: %+v", s, in, got)
		}
		for _, step := range got.Steps {
			if step.Earliest < 0 || step.Latest < step.Earliest || step.What == "" || got.GivesUp && step.Earliest > got.Latest {
				t.Fatalf("%s %+v: step %+v of %+v", s, in, step, got)
			}
		}
	})
}

func TestForReport(t *testing.T) {
	in := forecast.Input{KeepAlive: true, Policy: policy(5, 2, 1, 0), OS: forecast.Windows}
	for want, f := range map[string]forecast.Forecast{
		`{"situation":"idle","gives_up":true,"earliest_s":7,"latest_s":7,"rule":"keepalive","errno":"WSAENETRESET","article_bound_s":9,` +
			`"documented":true,"steps":[{"what":"probe","n":1,"earliest_s":5,"latest_s":5}]}`: forecastOf(t, forecast.SituationIdle, in),
		`{"situation":"fin-wait-2","gives_up":true,"earliest_s":2.016,"latest_s":2.016,"expected_s":2.016,"rule":"fin-timeout","errno":null,` +
			`"article_bound_s":null,"steps":[]}`: forecastOf(t, forecast.SituationFinWait2,
			forecast.Input{FinTimeout: 2 * time.Second, Clock: forecast.Clock{Jiffies: 1 << 20}, RTO: 560 * ms}),
	} {
		got, err := json.Marshal(f.Report())
		if err != nil || string(got) != want {
			t.Errorf("%v\n got %s\nwant %s", err, got, want)
		}
	}
}

func ExampleFor() {
	f, err := forecast.For(forecast.SituationInFlight, forecast.Input{RTT: 40 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(f.Earliest, f.Latest, f.Rule, f.Errno)
	fmt.Println(f.Steps[0].What, f.Steps[0].Earliest)
	// Output:
	// 16m11.624s 16m13.672s retries ETIMEDOUT
	// tail-loss probe 240ms
}
