package heartbeat_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deadpeer/heartbeat"
)

// TestZEOKeepAlive holds the monitor to what Dieter Maurer's ZEOKeepAlive
// (2005, ZODB-Dev) did, statement by statement.
func TestZEOKeepAlive(t *testing.T) {
	type world struct {
		*heartbeat.Monitor
		log bytes.Buffer
	}
	begin := func(t *testing.T, period time.Duration) (*world, error) {
		w := &world{}
		logger := slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		w.Monitor = heartbeat.New(heartbeat.Options{Period: period, Jitter: -1, Observer: heartbeat.LogTo(logger)})
		err := w.Start(t.Context())
		t.Cleanup(func() { _ = w.Stop(context.Background()) })
		return w, err
	}
	logged := func(t *testing.T, w *world, parts ...string) {
		t.Helper()
		for line := range strings.SplitSeq(w.log.String(), "\n") {
			found := true
			for _, p := range parts {
				found = found && strings.Contains(line, p)
			}
			if found {
				return
			}
		}
		t.Errorf("no line with %q in the log:\n%s", parts, w.log.String())
	}
	for _, test := range []struct {
		seed string
		env  map[string]string
		run  func(t *testing.T)
	}{
		{"if _period: raise ValueError('KeepAlive thread already started')", nil, func(t *testing.T) {
			w, err := begin(t, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Start(t.Context()); !errors.Is(err, heartbeat.ErrStarted) {
				t.Errorf("second start: %v", err)
			}
		}},
		{"period = environ.get('ZEO_KEEPALIVE_PERIOD'); period = int(period)", map[string]string{"ZEO_KEEPALIVE_PERIOD": "7"}, func(t *testing.T) {
			if w, err := begin(t, 0); err != nil || w.Period() != 7*time.Second {
				t.Errorf("period %v, %v", w.Period(), err)
			}
		}},
		{"if period is None: (an option goes before the environment)", map[string]string{"ZEO_KEEPALIVE_PERIOD": "7"}, func(t *testing.T) {
			if w, err := begin(t, 3*time.Second); err != nil || w.Period() != 3*time.Second {
				t.Errorf("period %v, %v", w.Period(), err)
			}
		}},
		{"(our own variable goes before it)", map[string]string{"ZEO_KEEPALIVE_PERIOD": "7", "DEADPEER_HEARTBEAT_PERIOD": "2m"}, func(t *testing.T) {
			if w, err := begin(t, 0); err != nil || w.Period() != 2*time.Minute {
				t.Errorf("period %v, %v", w.Period(), err)
			}
		}},
		{"int('soon') raises", map[string]string{"ZEO_KEEPALIVE_PERIOD": "soon"}, func(t *testing.T) {
			w, err := begin(t, 0)
			if err == nil || !strings.Contains(err.Error(), `read ZEO_KEEPALIVE_PERIOD: "soon" is neither`) || w.Period() != 0 {
				t.Errorf("period %v, %v", w.Period(), err)
			}
		}},
		{"_log(INFO, 'Thread not started'): no period", nil, func(t *testing.T) {
			w, err := begin(t, 0)
			if err != nil || w.Period() != 0 {
				t.Errorf("period %v, %v", w.Period(), err)
			}
			logged(t, w, "level=INFO", "not started")
		}},
		{"period and period > 0: 0 in the environment", map[string]string{"ZEO_KEEPALIVE_PERIOD": "0"}, func(t *testing.T) {
			w, err := begin(t, 0)
			if err != nil || w.Period() != 0 {
				t.Errorf("period %v, %v", w.Period(), err)
			}
			logged(t, w, "level=INFO", "not started")
			if err := w.Start(t.Context()); err != nil {
				t.Errorf("a start after one that did nothing: %v", err)
			}
		}},
		{"period and period > 0: a negative option", map[string]string{"ZEO_KEEPALIVE_PERIOD": "7"}, func(t *testing.T) {
			w, err := begin(t, -time.Second)
			if err != nil || w.Period() != 0 {
				t.Errorf("period %v, %v", w.Period(), err)
			}
			logged(t, w, "level=INFO", "not started")
		}},
		{"_log(INFO, 'Thread started with period %s sec')", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			logged(t, w, "level=INFO", "heartbeat started", "period=5s")
		}},
		{"while True: sleep(period) comes first", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			var pings atomic.Int32
			w.Add("db", heartbeat.PingFunc(func(context.Context) error { pings.Add(1); return nil }))
			pass(5*time.Second - time.Millisecond)
			if pings.Load() != 0 {
				t.Error("pinged before one period was over")
			}
			pass(time.Millisecond)
			if pings.Load() != 1 {
				t.Error("not pinged after one period")
			}
		}},
		{"for db in dbs.opened.values(): looked up anew in each round", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			w.Add("first", heartbeat.PingFunc(answers))
			pass(6 * time.Second)
			w.Add("second", heartbeat.PingFunc(answers))
			pass(6 * time.Second)
			logged(t, w, "answered", "target=second")
		}},
		{"if S._ready.isSet(): … else: _log(WARNING, 'Connection for %s is down')", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			w.Add("db", &full{ready: func() bool { return false }, ping: func(context.Context) error {
				t.Error("pinged though not ready")
				return nil
			}})
			pass(6 * time.Second)
			logged(t, w, "level=WARN", "not ready", "target=db")
		}},
		{"_log(BLATHER, 'Sending keep alive for %s'), 'Keep alive for %s successful'", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			w.Add("db", heartbeat.PingFunc(answers))
			pass(6 * time.Second)
			logged(t, w, "level=DEBUG", "sent", "target=db")
			logged(t, w, "level=DEBUG", "answered", "target=db")
		}},
		{"S._load_lock.acquire() … finally: S._load_lock.release()", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			db := &full{}
			db.ping = func(context.Context) error {
				if db.TryLock() {
					t.Error("pinged without its lock")
				}
				panic("whatever happens, it is released")
			}
			db.reconnect = answers
			w.Add("db", db)
			pass(6 * time.Second)
			if !db.TryLock() {
				t.Error("the lock is still held")
			}
		}},
		{"except: _log(ERROR, 'Keep alive for %s failed', error=True); the others go on", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			w.Add("bad", heartbeat.PingFunc(fails))
			w.Add("good", heartbeat.PingFunc(answers))
			pass(6 * time.Second)
			logged(t, w, "level=ERROR", "failed", "target=bad", `error="no answer"`)
			logged(t, w, "answered", "target=good")
		}},
		{"except: _log(PANIC, 'Exception in keep alive thread'): here it goes on", nil, func(t *testing.T) {
			w, _ := begin(t, 5*time.Second)
			w.Add("bad", &full{ready: func() bool { panic("S has no _ready") }, reconnect: fails})
			w.Add("good", heartbeat.PingFunc(answers))
			pass(11 * time.Second)
			logged(t, w, "level=ERROR", "S has no _ready")
			if n := strings.Count(w.log.String(), "answered\" target=good"); n != 2 {
				t.Errorf("%d answers of the good one, want 2", n)
			}
		}},
	} {
		t.Run(test.seed, func(t *testing.T) {
			for _, name := range []string{heartbeat.EnvPeriod, heartbeat.EnvZEOPeriod} {
				t.Setenv(name, test.env[name])
			}
			synctest.Test(t, test.run)
		})
	}
}
