package survey

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func options(limit, resolution time.Duration, connections int) Options {
	o := Options{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Max: limit, Resolution: resolution, Connections: connections}
	if err := o.complete(); err != nil {
		panic(err)
	}
	return o
}

func TestPlan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		max, resolution time.Duration
		connections     int
		want            Plan
	}{
		{2 * time.Hour, 5 * time.Second, 16, Plan{3, 450 * time.Second, 6 * time.Second}},
		{8 * time.Second, time.Second, 2, Plan{3, 4 * time.Second, 6 * time.Second}},
		{8 * time.Second, time.Second, 8, Plan{1, time.Second, 6 * time.Second}},
		{8 * time.Second, 8 * time.Second, 2, Plan{1, 8 * time.Second, 6 * time.Second}},
	} {
		got, err := options(tt.max, tt.resolution, tt.connections).Plan()
		if err != nil || got != tt.want {
			t.Errorf("%v / %v with %d: %+v, %v; want %+v", tt.max, tt.resolution, tt.connections, got, err, tt.want)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	good := options(time.Hour, time.Second, 4)
	for want, change := range map[string]func(*Options){
		"max":         func(o *Options) { o.Max = time.Second },
		"resolution":  func(o *Options) { o.Resolution = 2 * time.Hour },
		"connections": func(o *Options) { o.Connections = 1 },
		"address":     func(o *Options) { o.Addr = netip.AddrPort{} },
	} {
		o := good
		change(&o)
		_, err := o.Plan()
		if e, ok := errors.AsType[*OptionError](err); !ok || e.Option != want {
			t.Errorf("got %v, want a complaint about %s", err, want)
		}
	}
}

// simulate surveys a path that forgets after truth, and gives how long it
// takes when questions and timers take no time.
func simulate(t *testing.T, o Options, truth time.Duration) (k known, passes int, took time.Duration) {
	t.Helper()
	list := []Observation{{Idle: Shortest, Outcome: Answered, Asked: true}}
	for ; ; passes++ {
		k = weigh(list, o.Resolution)
		rungs := k.ladder(o)
		if rungs == nil {
			return k, passes, took
		}
		if len(rungs) > o.Connections {
			t.Fatalf("%d connections, allowed are %d", len(rungs), o.Connections)
		}
		for _, r := range rungs {
			obs := Observation{Idle: r, Outcome: Answered, Asked: true}
			if r > truth {
				obs.Outcome = Silent
			}
			list = append(list, obs)
			if !obs.lived() {
				break
			}
		}
		took += list[len(list)-1].Idle
	}
}

func TestLadderFindsEveryAnswerWithinTheBound(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		resolution := time.Duration(1+random.IntN(60)) * time.Second / 2
		limit := min(LongestMax, resolution*time.Duration(2+random.IntN(5000)))
		o := options(max(limit, 2*time.Second), resolution, 2+random.IntN(MostConnections-1))
		truth := Shortest + time.Duration(random.Float64()*float64(o.Max))
		plan, err := o.Plan()
		if err != nil {
			t.Fatal(err)
		}
		k, passes, took := simulate(t, o, truth)
		name := fmt.Sprintf("%v by %v with %d, truth %v: %+v in %d passes, %v", o.Max, o.Resolution, o.Connections, truth, k, passes, took)
		if passes > plan.Passes {
			t.Fatalf("%s: planned were %d", name, plan.Passes)
		}
		if truth >= o.Max {
			if k.gone != 0 || k.alive != o.Max {
				t.Fatalf("%s: want never", name)
			}
			continue
		}
		if k.alive > truth || k.gone <= truth || k.gone-k.alive > o.Resolution+o.Resolution/10 {
			t.Fatalf("%s: not found", name)
		}
		if bound := time.Duration(plan.Passes) * (truth + plan.Rung); took > bound {
			t.Fatalf("%s: bound %v", name, bound)
		}
	}
}

func TestWeigh(t *testing.T) {
	t.Parallel()
	const s = time.Second
	answered := func(d time.Duration) Observation { return Observation{Idle: d, Outcome: Answered, Asked: true} }
	silent := func(d time.Duration) Observation { return Observation{Idle: d, Outcome: Silent, Asked: true} }
	closed := func(d time.Duration) Observation { return Observation{Idle: d, Outcome: Closed} }
	for name, tt := range map[string]struct {
		list []Observation
		want known
	}{
		"nothing":  {nil, known{}},
		"answers":  {[]Observation{answered(5 * s), answered(2 * s)}, known{alive: 5 * s}},
		"found":    {[]Observation{answered(5 * s), silent(9 * s), silent(7 * s)}, known{alive: 5 * s, gone: 7 * s, how: Silent}},
		"by close": {[]Observation{answered(5 * s), closed(20 * s), closed(21 * s)}, known{alive: 18 * s, gone: 20 * s, how: Closed}},
		"at once":  {[]Observation{closed(s / 2)}, known{gone: s / 2, how: Closed}},
		"an answer disproves silence": {
			[]Observation{answered(s), silent(4 * s), answered(6 * s), silent(8 * s)},
			known{alive: 6 * s, gone: 8 * s, how: Silent, odd: 4 * s},
		},
		"and a close": {[]Observation{closed(3 * s), answered(6 * s)}, known{alive: 6 * s, odd: 3 * s}},
	} {
		if got := weigh(tt.list, 2*s); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// What is recommended keeps a connection alive: three probes, as late as
// timers may be, come before the path forgets.
func TestRecommend(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		alive   time.Duration
		idle    time.Duration
		profile string
	}{
		{340 * time.Second, 272 * time.Second, "aws-nlb"},
		{240 * time.Second, 192 * time.Second, "azure-lb"},
		{19 * time.Second, 14 * time.Second, "fast"},
		{90 * time.Second, 72 * time.Second, "fast"},
		{8 * time.Second, 5 * time.Second, ""},
		{2 * time.Second, time.Second, ""},
		{24 * time.Hour, 32767 * time.Second, "any"},
	} {
		r := Result{How: Silent, Alive: tt.alive, Gone: tt.alive + time.Second}
		p, ok := r.Recommend()
		if err := p.ValidateFor("linux"); err != nil || !ok || p.Idle != tt.idle {
			t.Errorf("%v: %+v, %v, want idle %v", tt.alive, p, err, tt.idle)
		}
		if third := late(p.Idle) + 2*late(p.Interval); p.Idle > time.Second && third > tt.alive {
			t.Errorf("%v: the third probe of %+v may come at %v", tt.alive, p, third)
		}
		if n, _ := r.Nearest(); n.Name != tt.profile {
			t.Errorf("%v: profile %q, want %q", tt.alive, n.Name, tt.profile)
		}
	}
	lossy := Result{How: Silent, Alive: time.Minute, Gone: time.Minute + time.Second, Questions: 100, Unanswered: 19}
	if p, _ := lossy.Recommend(); p.Probes != 9 {
		t.Errorf("with a loss of %.2f each way %d probes, want 9", lossy.Loss(), p.Probes)
	}
	odd := Result{How: Silent, Alive: time.Hour, Gone: 2 * time.Hour, Odd: time.Minute}
	if p, _ := odd.Recommend(); p.Idle != 48*time.Second {
		t.Errorf("where some are forgotten after a minute, idle %v", p.Idle)
	}
	for _, how := range []Outcome{Never, Closed, Disturbed, ""} {
		if p, ok := (Result{How: how, Alive: time.Hour}).Recommend(); ok {
			t.Errorf("%s: %+v", how, p)
		}
	}
}
