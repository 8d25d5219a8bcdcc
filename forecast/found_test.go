package forecast_test

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"deadpeer/forecast"
)

// foundCase is a situation from its beginning, the phase of the ticks known,
// and how the kernel describes it later.
type foundCase struct {
	situation forecast.Situation
	in        forecast.Input
	what      string // the steps that the pending timer was armed at
	timeout   func(n int) time.Duration
	sent      bool // Sent tells when
}

func randomCase(r *rand.Rand) foundCase {
	pick := func(list ...int) int { return list[r.IntN(len(list))] }
	c := foundCase{in: forecast.Input{
		HZ: pick(100, 250, 300, 1000), RTT: time.Duration(1+r.IntN(300)) * ms, RTOMax: time.Duration(pick(1, 2, 30, 120)) * time.Second,
		Retries2: 1 + r.IntN(15), OrphanRetries: 1 + r.IntN(9), SYNRetries: 1 + r.IntN(6), SYNLinear: pick(-1, 1, 4),
		NoLossProbe: r.IntN(2) == 0, Ownership: forecast.Ownership(pick(int(forecast.Usual), int(forecast.Held))),
	}}
	if r.IntN(3) == 0 {
		c.in.Policy.UserTimeout = time.Duration(500+r.IntN(60000)) * ms
	}
	tick := time.Second / time.Duration(c.in.HZ)
	c.in.Clock = forecast.Clock{Jiffies: 1<<32 + uint64(r.IntN(1<<20)), Since: time.Duration(r.Int64N(int64(tick)))}
	whole := func(d time.Duration) time.Duration { return (d + tick - 1) / tick * tick }
	c.in.RTO = whole(c.in.RTT + 200*ms)
	doubled := func(base time.Duration, n int) time.Duration { return min(base<<min(n, 20), whole(c.in.RTOMax)) }
	c.timeout = func(n int) time.Duration { return doubled(c.in.RTO, n) }
	switch r.IntN(4) {
	case 0:
		c.situation, c.what, c.sent = forecast.SituationInFlight, forecast.Retransmission, true
	case 1:
		c.situation, c.what = forecast.SituationFinWait1, forecast.FIN
	case 2:
		c.situation, c.what = forecast.SituationSynReceived, forecast.SYNACK
		c.timeout = func(n int) time.Duration { return doubled(time.Second, n) }
	default:
		c.situation, c.what = forecast.SituationSynSent, forecast.SYN
		c.timeout = func(n int) time.Duration { return doubled(time.Second, max(0, n-max(0, c.in.SYNLinear))) }
	}
	return c
}

// However a connection is found on its way, the forecast from there holds: the
// end of the forecast from the beginning lies in it, and is the one expected
// if there is one.
func TestFound(t *testing.T) {
	t.Parallel()
	const seed = 7
	r := rand.New(rand.NewPCG(seed, seed))
	found, certain := 0, 0
	for range 200 {
		c := randomCase(r)
		whole := forecastOf(t, c.situation, c.in)
		tick := time.Second / time.Duration(c.in.HZ)
		var first time.Duration // when the clock was started that a user timeout is held against
		for i, step := range whole.Steps {
			if step.What != c.what {
				continue
			}
			if step.N == 1 && c.situation != forecast.SituationSynSent {
				first = step.Earliest
			}
			next := whole.Earliest
			if i+1 < len(whole.Steps) {
				next = whole.Steps[i+1].Earliest
			}
			armed := c.timeout(step.N)
			if left := c.in.Policy.UserTimeout - (step.Earliest - first); c.in.Policy.UserTimeout > 0 && c.situation != forecast.SituationSynReceived {
				armed = min(armed, max(tick, (left+tick-1)/tick*tick))
			}
			// Some ticks later, the timer is described in whole ones.
			later := time.Duration(r.Int64N(int64((next-step.Earliest)/tick))) * tick
			in := c.in
			in.Retransmits, in.TimerIn = step.N, max(1, armed-later)
			if c.sent {
				in.Sent = later
			}
			at := step.Earliest + later
			in.Clock.Since += at
			in.Clock.Jiffies += uint64((in.Clock.Since + tick/2) / tick) // steps are cut off to nanoseconds
			in.Clock.Since = 0
			for _, in.Clock = range []forecast.Clock{in.Clock, {}} {
				f := forecastOf(t, c.situation, in)
				found++
				if f.Expected != 0 {
					certain++
				}
				slack := 2 * tick // user timeouts are kept in milliseconds, and cut off
				if c.in.Policy.UserTimeout == 0 {
					slack = time.Microsecond
				}
				if end := whole.Earliest - at; end < f.Earliest-slack-tick || end > f.Latest+slack+tick || f.Errno != whole.Errno || f.Rule != whole.Rule {
					t.Fatalf("%s %+v\nfound %v after %s %d of %v: ends in %v by %s, forecast %v to %v by %s\n%+v",
						c.situation, c.in, later, step.What, step.N, step.Earliest, end, whole.Rule, f.Earliest, f.Latest, f.Rule, in)
				}
			}
		}
	}
	if found < 1000 || certain < found/8 {
		t.Errorf("%d found, %d certain", found, certain)
	}
	t.Logf("%d found, %d certain", found, certain)
}

func TestFoundRefused(t *testing.T) {
	t.Parallel()
	var input *forecast.InputError
	for _, c := range []struct {
		situation forecast.Situation
		in        forecast.Input
		field     string
	}{
		{forecast.SituationInFlight, forecast.Input{Retransmits: 1}, "timer"},
		{forecast.SituationInFlight, forecast.Input{Retransmits: 256, TimerIn: 1}, "retransmits"},
		{forecast.SituationInFlight, forecast.Input{Sent: -1, TimerIn: 1}, "sent"},
		{forecast.SituationZeroWindow, forecast.Input{Backoff: -1, TimerIn: 1}, "backoff"},
		{forecast.SituationZeroWindow, forecast.Input{Backoff: 2}, "timer"},
		{forecast.SituationZeroWindowAlive, forecast.Input{TimerIn: 1}, "timer"},
		{forecast.SituationARPFailing, forecast.Input{TimerIn: time.Second}, "timer"},
	} {
		if _, err := forecast.For(c.situation, c.in); !errors.As(err, &input) || input.Field != c.field {
			t.Errorf("%s %+v: %v, want %s", c.situation, c.in, err, c.field)
		}
	}
	reverted := forecast.Input{Retransmits: 3, Backoff: 2, TimerIn: time.Second}
	if _, err := forecast.For(forecast.SituationInFlight, reverted); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("backoff taken back: %v", err)
	}
}

// What can be in 2^63 ways ends in one of them: no panic, and ends in order.
func FuzzFound(f *testing.F) {
	f.Add(uint8(1), int64(time.Second), 3, 3, int64(time.Second), int64(0), uint64(1<<32), 250)
	f.Add(uint8(2), int64(1), 15, 20, int64(0), int64(5*time.Second), uint64(0), 1000)
	f.Add(uint8(7), int64(64*time.Second), 0, 0, int64(0), int64(0), uint64(9), 100)
	f.Fuzz(func(t *testing.T, situation uint8, timer int64, retransmits, backoff int, sent, userTimeout int64, jiffies uint64, hz int) {
		list := forecast.Situations()
		in := forecast.Input{KeepAlive: true, TimerIn: time.Duration(timer), Retransmits: retransmits, Backoff: backoff, Sent: time.Duration(sent), HZ: hz}
		in.Policy.UserTimeout, in.Clock.Jiffies = time.Duration(userTimeout), jiffies
		in.Policy.Idle, in.Policy.Interval, in.Policy.Probes = time.Minute, time.Second, 3
		got, err := forecast.For(list[int(situation)%len(list)], in)
		if err == nil && (got.Earliest < 0 || got.Latest < got.Earliest) {
			t.Errorf("%+v: %v to %v", in, got.Earliest, got.Latest)
		}
	})
}
