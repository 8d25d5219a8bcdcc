package heartbeat

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// A handle is what a target costs while it waits. README and the benchmark
// promise 200 bytes.
func TestHandleIsSmall(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(Handle{}); size > 144 {
		t.Errorf("%d bytes, want at most 144", size)
	}
}

// The wheel hands everything out at its tick, against a sorted list.
func TestWheelAgainstList(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		var w wheel
		w.now = []uint64{0, 255, 1 << 16, 1<<28 - 1, 1<<40 - 300}[seed%5]
		live := map[*Handle]uint64{}
		span := []uint64{3, 300, 300_000, 300_000_000, 1 << 38}[seed/5%5]
		for range 400 {
			switch r.IntN(4) {
			case 0, 1:
				h := &Handle{due: w.now + min(r.Uint64N(span), farAway)}
				w.insert(h)
				live[h] = h.due
			case 2:
				for h := range live {
					w.remove(h)
					delete(live, h)
					break
				}
			case 3:
				to := w.now + r.Uint64N(span)
				next, ok := w.next()
				for _, due := range live {
					if !ok || next > due {
						t.Fatalf("seed %d: next is %d (%v), one is due at %d", seed, next, ok, due)
					}
				}
				last := uint64(0)
				w.advance(to, func(h *Handle) {
					due, ok := live[h]
					if !ok || due > to || due < last || h.onWheel() {
						t.Fatalf("seed %d: at %d handed out %d after %d, waiting: %v", seed, to, due, last, ok)
					}
					last = due
					delete(live, h)
				})
				if w.now != to {
					t.Fatalf("seed %d: now is %d, want %d", seed, w.now, to)
				}
				for _, due := range live {
					if due <= to {
						t.Fatalf("seed %d: at %d one due at %d still waits", seed, to, due)
					}
				}
			}
		}
	}
}

func TestWheelKeepsOrderWithinATick(t *testing.T) {
	t.Parallel()
	var w wheel
	var in, out []*Handle
	for range 50 {
		h := &Handle{due: 200}
		w.insert(h)
		in = append(in, h)
	}
	w.advance(500, func(h *Handle) { out = append(out, h) })
	if !slices.Equal(in, out) {
		t.Error("not first in, first out")
	}
}

// However the ticks of handles lie to the present's bits, only few stand in one
// slot and move at one time.
func TestWheelSpreadsOut(t *testing.T) {
	t.Parallel()
	for _, now := range []uint64{0, 1<<16 - 15_000, 1<<18 - 1, 1<<28 - 100_000, 1<<38 - 5} {
		w := wheel{now: now}
		for i := range uint64(250_000) {
			w.insert(&Handle{due: now + 1 + i})
		}
		for slot, h := range w.slots {
			n := 0
			for ; h != nil; h = h.next {
				n++
			}
			if n > 256 {
				t.Errorf("at %d: slot %d has %d handles", now, slot, n)
			}
		}
	}
}

// A program whose period is not given adds and removes targets all the same.
func TestMonitorNotStartedForgets(t *testing.T) {
	t.Parallel()
	m := New(Options{Period: -1, Observer: Observers()})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := m.Add("kept", PingFunc(nil))
	m.Add("removed", PingFunc(nil)).Remove()
	if _, ok := m.early[kept]; !ok || len(m.early) != 1 {
		t.Errorf("%d targets are held, want the one", len(m.early))
	}
}

func TestLatency(t *testing.T) {
	t.Parallel()
	var l Latency
	if l.Quantile(0.5) != 0 || l.Last() != 0 {
		t.Error("an empty histogram knows something")
	}
	for _, d := range []time.Duration{-1, 0, 31 * time.Microsecond} {
		l.add(d)
	}
	if got := l.Quantile(1); got != 32*time.Microsecond {
		t.Errorf("fast answers: %v, want 32µs", got)
	}
	l = Latency{}
	for range 99 {
		l.add(900 * time.Microsecond)
	}
	l.add(time.Hour)
	for _, test := range []struct {
		q    float64
		want time.Duration
	}{{0, 1024 * time.Microsecond}, {0.5, 1024 * time.Microsecond}, {0.99, 1024 * time.Microsecond}, {1, 32 * time.Microsecond << 19}} {
		if got := l.Quantile(test.q); got != test.want {
			t.Errorf("quantile %v: %v, want %v", test.q, got, test.want)
		}
	}
	for range 200_000 { // must not overflow, and the latest count most
		l.add(5 * time.Millisecond)
	}
	if got := l.Quantile(0.99); got != 8192*time.Microsecond {
		t.Errorf("after many slower answers: %v, want 8.192ms", got)
	}
}

func FuzzParsePeriod(f *testing.F) {
	for _, s := range []string{"30", "0.5", "2m", "-1", "NaN", "Inf", "1e300", "", "9223372036854775807", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parsePeriod(s)
		if err != nil && d != 0 {
			t.Errorf("%q: %v with error %v", s, d, err)
		}
	})
}

func TestParsePeriod(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"30": 30 * time.Second, "0.25": 250 * time.Millisecond, "2m": 2 * time.Minute, "-5": -5 * time.Second, "0": 0,
	} {
		if d, err := parsePeriod(text); err != nil || d != want {
			t.Errorf("%q: %v, %v; want %v", text, d, err, want)
		}
	}
	for _, text := range []string{"soon", "NaN", "1e10", "-1e10", "inf", "9223372036.9", "9223372036.854776", "3 s"} {
		if d, err := parsePeriod(text); err == nil {
			t.Errorf("%q: %v, want an error", text, d)
		}
	}
}

func TestOptionsDefaults(t *testing.T) {
	t.Parallel()
	o := Options{}.withDefaults()
	if o.Deadline != 10*time.Second || o.Failures != 2 || o.Jitter != 0.1 || o.BackoffMin != time.Second ||
		o.BackoffMax != time.Minute || o.Workers != 4096 || o.Observer == nil {
		t.Errorf("defaults are %+v", o)
	}
	o = Options{Jitter: 7, BackoffMin: time.Hour}.withDefaults()
	if o.Jitter != 1 || o.BackoffMax != time.Hour {
		t.Errorf("got %+v", o)
	}
}
