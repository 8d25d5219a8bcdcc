package heartbeat_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deadpeer/heartbeat"
)

func TestReconnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		opts := options(s)
		opts.BackoffMin, opts.BackoffMax = 100*time.Millisecond, 400*time.Millisecond
		m := start(t, opts)
		var alive atomic.Bool
		attempts := []time.Duration(nil)
		begin := time.Now()
		h := m.Add("a", &full{
			ping: func(context.Context) error {
				if alive.Load() {
					return nil
				}
				return errDead
			},
			reconnect: func(context.Context) error {
				attempts = append(attempts, time.Since(begin))
				if len(attempts) == 40 {
					alive.Store(true)
					return nil
				}
				return errDead
			},
		})
		pass(60 * time.Second)
		if len(attempts) != 40 || attempts[0] != 30*time.Second {
			t.Fatalf("%d attempts, the first after %v; want 40, 30s", len(attempts), attempts[0])
		}
		longest := time.Duration(0)
		for i := 1; i < len(attempts); i++ {
			wait := attempts[i] - attempts[i-1]
			bound := min(100*time.Millisecond<<min(i-1, 8), 400*time.Millisecond) + time.Millisecond
			if wait > bound {
				t.Errorf("attempt %d came %v after the one before, want at most %v", i+1, wait, bound)
			}
			longest = max(longest, wait)
		}
		if longest < 200*time.Millisecond { // 38 draws under 400 ms: chance 2^-37
			t.Errorf("longest wait %v: it does not grow", longest)
		}
		if h.State() != heartbeat.Up {
			t.Errorf("state %v, want up", h.State())
		}
		lines := s.of("a")
		got := strings.Join(lines[len(lines)-4:], "\n")
		at, _, _ := strings.Cut(got, " ")
		want := strings.Join([]string{at + " reconnected", at + " sent", at + " answered", at + " down → up"}, "\n")
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

// A connection made anew is given the same number of pings as any.
func TestNewConnectionIsNotBlamedForTheOld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		pings := 0
		m.Add("a", &full{
			ping: func(context.Context) error {
				if pings++; pings <= 3 {
					return errDead
				}
				return nil
			},
			reconnect: answers,
		})
		pass(31 * time.Second)
		s.want(t, "a",
			"30s sent", "30s failed", "30s not_ready → suspect", "30s sent", "30s failed", "30s suspect → down",
			"30s reconnecting", "30s reconnected",
			"30s sent", "30s failed", "30s sent", "30s answered", "30s down → up")
	})
}

func TestHungReconnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		alive := false
		m.Add("a", &full{
			ping: func(context.Context) error {
				if alive {
					return nil
				}
				return errDead
			},
			reconnect: func(context.Context) error {
				time.Sleep(25 * time.Second)
				alive = true
				return nil
			},
		})
		pass(56 * time.Second)
		s.want(t, "a",
			"30s sent", "30s failed", "30s not_ready → suspect", "30s sent", "30s failed", "30s suspect → down",
			"30s reconnecting", "40.1s reconnect failed", "50.1s reconnect failed",
			"55s sent", "55s answered", "55s down → up")
	})
}

// Removing a target ends its attempt to reconnect.
func TestRemoveEndsReconnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStory()
		m := start(t, options(s))
		h := m.Add("a", &full{ping: fails, reconnect: silent})
		pass(31 * time.Second)
		h.Remove()
		synctest.Wait()
		if lines := s.of("a"); lines[len(lines)-1] != "31s removed" {
			t.Errorf("got %v, want it removed at 31s", lines)
		}
	})
}
