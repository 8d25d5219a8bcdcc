package heartbeat_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deadpeer/heartbeat"
)

func TestFailuresNeededBeforeDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		h := m.Add("a", heartbeat.PingFunc(fails))
		pass(70 * time.Second)
		s.want(t, "a",
			"30s sent", "30s failed", "30s not_ready → suspect",
			"30s sent", "30s failed", "30s suspect → down", // the second follows at once
			"1m0s sent", "1m0s failed")
		if h.State() != heartbeat.Down {
			t.Errorf("state %v, want down", h.State())
		}
	})
}

func TestOneLostAnswerIsNotDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		n := 0
		m.Add("a", heartbeat.PingFunc(func(ctx context.Context) error {
			if n++; n == 2 {
				return silent(ctx)
			}
			return nil
		}))
		pass(105 * time.Second)
		s.want(t, "a",
			"30s sent", "30s answered", "30s not_ready → up",
			"1m0s sent", "1m10s failed", "1m10s up → suspect",
			"1m10s sent", "1m10s answered", "1m10s suspect → up",
			"1m40s sent", "1m40s answered")
	})
}

func TestBreakIsNoticedWithinPeriodAndDeadlines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		var dead atomic.Bool
		h := m.Add("a", heartbeat.PingFunc(func(ctx context.Context) error {
			if dead.Load() {
				return silent(ctx)
			}
			return nil
		}))
		pass(30*time.Second + time.Millisecond)
		dead.Store(true)
		pass(30*time.Second + 2*10*time.Second)
		if h.State() != heartbeat.Down {
			t.Errorf("state %v, want down", h.State())
		}
	})
}

// A call that ignores its context costs its own target only, counts as failed
// at each deadline, and is ended by Reconnect.
func TestHungCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		opts := options(s)
		opts.Workers = 1
		m := start(t, opts)
		release := make(chan struct{})
		var freed atomic.Bool
		h := m.Add("hung", &full{
			ping: func(context.Context) error {
				if !freed.Load() {
					<-release
				}
				return nil
			},
			reconnect: func(context.Context) error {
				freed.Store(true)
				close(release)
				return nil
			},
		})
		for range 20 {
			m.Add("good", heartbeat.PingFunc(answers))
		}
		pass(29 * time.Second)
		if s.of("good") != nil {
			t.Fatal("pinged before the period was over")
		}
		pass(35 * time.Second)
		s.want(t, "hung",
			"30s sent",
			"40.1s failed", "40.1s not_ready → suspect", // no second ping: the first is out
			"50.1s failed", "50.1s suspect → down",
			"50.1s reconnecting", "50.1s reconnected", "50.1s sent", "50.1s answered", "50.1s down → up")
		if h.State() != heartbeat.Up {
			t.Errorf("state %v, want up", h.State())
		}
		// With a single worker the others wait for its being written off, and
		// never again.
		if n := len(s.of("good")); n != 20*3 {
			t.Errorf("%d events of the others, want 60", n)
		}
	})
}

func TestManyHungCallsDelayNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		release := make(chan struct{})
		for range 1000 {
			m.Add("hung", heartbeat.PingFunc(func(context.Context) error { <-release; return nil }))
		}
		for range 3 {
			m.Add("good", heartbeat.PingFunc(answers))
		}
		pass(100 * time.Second)
		for i, line := range s.of("good") {
			for _, at := range []string{"30s", "1m0s", "1m30s"} {
				if strings.HasPrefix(line, at+" ") {
					line = ""
				}
			}
			if line != "" {
				t.Errorf("event %d out of time: %s", i, line)
			}
		}
		err := m.Stop(t.Context())
		if !errors.Is(err, heartbeat.ErrNotReturned) {
			t.Errorf("stop: %v, want ErrNotReturned", err)
		}
		close(release)
	})
}

// A late answer is followed by a ping at once.
func TestLateReturnIsPingedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		n := 0
		m.Add("a", heartbeat.PingFunc(func(context.Context) error {
			if n++; n == 1 {
				time.Sleep(12 * time.Second)
			}
			return nil
		}))
		pass(45 * time.Second)
		s.want(t, "a", "30s sent", "40.1s failed", "40.1s not_ready → suspect",
			"42s sent", "42s answered", "42s suspect → up")
	})
}

func TestHeard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		begin := time.Now()
		var traffic atomic.Int64 // the application's own
		traffic.Store(int64(20 * time.Second))
		var slow atomic.Bool
		m.Add("a", &full{
			heard: func() time.Duration { return time.Since(begin) - time.Duration(traffic.Load()) },
			ping: func(ctx context.Context) error {
				if slow.Load() {
					time.AfterFunc(4*time.Second, func() { traffic.Store(int64(time.Since(begin))) })
					return silent(ctx)
				}
				return nil
			},
		})
		pass(60 * time.Second)
		slow.Store(true)
		pass(60 * time.Second)
		s.want(t, "a",
			"30s heard", "30s not_ready → up", // 10 s ago
			"50s sent", "50s answered",
			"1m20s sent", "1m30s heard", // the ping was not answered, but something came
			"1m54s sent")
	})
}

func TestLockedWhilePinged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		a := &full{}
		a.ping = func(ctx context.Context) error {
			if a.TryLock() {
				t.Error("pinged without its lock")
				a.Unlock()
			}
			if d, _ := ctx.Deadline(); time.Until(d) < 9*time.Second {
				t.Errorf("%v left: waiting for the lock is not the ping's time", time.Until(d))
			}
			time.Sleep(time.Second)
			return nil
		}
		m.Add("a", a)
		pass(29 * time.Second)
		a.Lock() // the application is busy on the connection
		pass(6 * time.Second)
		a.Unlock()
		synctest.Wait()
		pass(5 * time.Second)
		s.want(t, "a", "35s sent", "36s answered", "36s not_ready → up")
		if !a.TryLock() {
			t.Fatal("still locked after the ping")
		}
		pass(50 * time.Second) // until 1m30s: too long for the ping of 1m6s
		a.Unlock()
		pass(5 * time.Second)
		s.want(t, "a", "35s sent", "36s answered", "36s not_ready → up",
			"1m16.1s busy", "1m26.1s busy", "1m30s sent", "1m31s answered")
	})
}

func TestPanicsAndEndedGoroutines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		opts := options(s)
		opts.Workers = 1
		m := start(t, opts)
		m.Add("panics", heartbeat.PingFunc(func(context.Context) error { panic("oh") }))
		m.Add("exits", &full{
			ping:      func(context.Context) error { runtime.Goexit(); return nil },
			reconnect: func(context.Context) error { runtime.Goexit(); return nil },
		})
		m.Add("unready panics", &full{ready: func() bool { panic(errDead) }, reconnect: func(context.Context) error { panic(errDead) }})
		good := m.Add("good", heartbeat.PingFunc(answers))
		pass(10 * time.Minute)
		if n := len(s.of("good")); n != 20*2+1 || good.State() != heartbeat.Up {
			t.Errorf("%d events of the good target, state %v; want 41, up", n, good.State())
		}
		for _, name := range []string{"panics", "exits", "unready panics"} {
			if n := len(s.of(name)); n < 20 {
				t.Errorf("%d events of %q: it was given up", n, name)
			}
		}
	})
}

func TestPanicErrorUnwraps(t *testing.T) {
	t.Parallel()
	if err := error(&heartbeat.PanicError{Value: errDead}); !errors.Is(err, errDead) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("%v does not unwrap to the panic's value", err)
	}
}

func TestAddRemovePingNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := heartbeat.New(options(s))
		m.Add("early, removed", heartbeat.PingFunc(answers)).Remove()
		m.Add("early", heartbeat.PingFunc(answers))
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		late := m.Add("late", heartbeat.PingFunc(answers))
		now := m.Add("now", heartbeat.PingFunc(answers))
		now.PingNow()
		slow := m.Add("slow", heartbeat.PingFunc(silent))
		slow.PingNow()
		synctest.Wait()
		slow.Remove()
		slow.Remove()
		pass(31 * time.Second)
		late.Remove()
		pass(10 * time.Second)
		s.want(t, "early", "30s sent", "30s answered", "30s not_ready → up")
		s.want(t, "early, removed", "0s removed")
		s.want(t, "late", "40s sent", "40s answered", "40s not_ready → up", "41s removed")
		s.want(t, "now", "10s sent", "10s answered", "10s not_ready → up", "40s sent", "40s answered")
		s.want(t, "slow", "10s sent", "20s removed")
		if d := late.Latency(); d.Last() != 0 || d.Quantile(0.5) != 32*time.Microsecond {
			t.Errorf("latency %v, median %v; want 0, 32µs", d.Last(), d.Quantile(0.5))
		}
		if err := m.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if h := m.Add("after the stop", heartbeat.PingFunc(answers)); h.State() != heartbeat.NotReady {
			t.Error("a stopped monitor pings")
		}
	})
}

func TestStopWaitsForPings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		m.Add("slow", heartbeat.PingFunc(func(context.Context) error { time.Sleep(3 * time.Second); return nil }))
		m.Add("reconnects", &full{ping: fails, reconnect: silent})
		pass(31 * time.Second)
		begin := time.Now()
		if err := m.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("stop took %v, want 2s", took)
		}
		pass(time.Hour)
		if lines := s.of("slow"); lines[1] != "33s answered" || len(lines) != 3 {
			t.Errorf("got %v", lines)
		}
		s.want(t, "monitor", "0s started", "31s stopped")
		if err := m.Stop(t.Context()); err != nil {
			t.Errorf("second stop: %v", err)
		}
	})
}

func TestStopGivesUpWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := start(t, options(newStory()))
		var cancelled atomic.Bool
		m.Add("slow", heartbeat.PingFunc(func(ctx context.Context) error {
			<-ctx.Done()
			cancelled.Store(errors.Is(ctx.Err(), context.Canceled))
			return ctx.Err()
		}))
		pass(31 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v, want the context's error", err)
		}
		synctest.Wait()
		if !cancelled.Load() {
			t.Error("the ping's context was not cancelled")
		}
	})
}

func TestContextStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		ctx, cancel := context.WithCancel(t.Context())
		m := heartbeat.New(options(s))
		if err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		m.Add("a", heartbeat.PingFunc(silent))
		pass(31 * time.Second)
		cancel()
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		s.want(t, "a", "30s sent")
		s.want(t, "monitor", "0s started", "31s stopped")
	})
}

func TestJitterSpreads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		opts := options(newStory())
		opts.Jitter = 0.5
		m := start(t, opts)
		begin := time.Now()
		seen := make(chan time.Duration, 2000)
		for range 1000 {
			m.Add("a", heartbeat.PingFunc(func(context.Context) error { seen <- time.Since(begin); return nil }))
		}
		pass(30*time.Second + time.Millisecond)
		if len(seen) != 1000 {
			t.Fatalf("%d pings within one period, want 1000", len(seen))
		}
		early := 0
		for range 1000 {
			d := <-seen
			if d < 15*time.Second {
				t.Fatalf("pinged after %v, want 15s at least", d)
			}
			if d < 22500*time.Millisecond {
				early++
			}
		}
		if early < 350 || early > 650 { // 500 ± 9 standard deviations
			t.Errorf("%d of 1000 in the first half of the spread", early)
		}
	})
}

// The longest deadline there is is not over at once.
func TestLongestDeadline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		opts := options(s)
		opts.Deadline = math.MaxInt64
		m := start(t, opts)
		m.Add("a", heartbeat.PingFunc(func(context.Context) error { time.Sleep(time.Minute); return nil }))
		pass(100 * time.Second)
		s.want(t, "a", "30s sent", "1m30s answered", "1m30s not_ready → up")
	})
}

// A ping that waits for its lock, or for Ready, does not begin after the end of
// the monitor or the removal of its target.
func TestWaitingPingDoesNotBeginAfterTheEnd(t *testing.T) {
	for name, end := range map[string]func(*heartbeat.Monitor, *heartbeat.Handle){
		"stop":   func(m *heartbeat.Monitor, _ *heartbeat.Handle) { _ = m.Stop(context.Background()) },
		"remove": func(_ *heartbeat.Monitor, h *heartbeat.Handle) { h.Remove() },
	} {
		for _, wait := range []time.Duration{2 * time.Second, 20 * time.Second} { // within the deadline, and not
			t.Run(fmt.Sprint(name, wait), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					m := start(t, options(newStory()))
					begun := func(context.Context) error { t.Error("pinged"); return nil }
					locked := &full{ping: begun, reconnect: answers}
					locked.Lock()
					handles := []*heartbeat.Handle{m.Add("locked", locked)}
					if wait > 10*time.Second {
						handles = append(handles, m.Add("unready", slowReady{heartbeat.PingFunc(begun), wait}))
					}
					pass(30*time.Second + wait/2 + time.Second/2)
					for _, h := range handles {
						go end(m, h)
					}
					pass(wait)
					locked.Unlock()
					pass(time.Minute)
				})
			})
		}
	}
}

// slowReady takes its time to tell that it is ready.
type slowReady struct {
	heartbeat.PingFunc
	wait time.Duration
}

func (s slowReady) Ready() bool { time.Sleep(s.wait); return true }
