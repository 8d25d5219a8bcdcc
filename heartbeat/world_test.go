package heartbeat_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"deadpeer/heartbeat"
)

var errDead = errors.New("no answer")

// story writes down what a monitor tells, with the time since it was made, as
// "30s orders sent". Of the sub-packages' events it leaves out latencies.
type story struct {
	mu    sync.Mutex
	start time.Time
	lines []string
}

func newStory() *story { return &story{start: time.Now()} }

func (s *story) Observe(e heartbeat.Event) {
	kinds := map[heartbeat.Kind]string{
		heartbeat.Sent: "sent", heartbeat.Answered: "answered", heartbeat.Failed: "failed", heartbeat.Heard: "heard",
		heartbeat.Unready: "unready", heartbeat.Busy: "busy", heartbeat.Reconnecting: "reconnecting",
		heartbeat.Reconnected: "reconnected", heartbeat.ReconnectFailed: "reconnect failed", heartbeat.Removed: "removed",
		heartbeat.Started: "started", heartbeat.NotStarted: "not started", heartbeat.Stopped: "stopped",
	}
	what := kinds[e.Kind]
	if e.Kind == heartbeat.Changed {
		what = fmt.Sprintf("%v → %v", e.Was, e.State)
	}
	name := "monitor"
	if e.Handle != nil {
		name = e.Handle.Name()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf("%v %s %s", time.Since(s.start), name, what))
}

// of gives the lines of one target, without its name.
func (s *story) of(name string) (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.lines {
		if at, rest, _ := strings.Cut(line, " "); strings.HasPrefix(rest, name+" ") {
			lines = append(lines, at+strings.TrimPrefix(rest, name))
		}
	}
	return lines
}

func (s *story) want(t *testing.T, name string, lines ...string) {
	t.Helper()
	if got := strings.Join(s.of(name), "\n"); got != strings.Join(lines, "\n") {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, strings.Join(lines, "\n"))
	}
}

// options are those of most tests: nothing random.
func options(s *story) heartbeat.Options {
	return heartbeat.Options{Period: 30 * time.Second, Deadline: 10 * time.Second, Jitter: -1, Observer: s}
}

func start(t *testing.T, opts heartbeat.Options) *heartbeat.Monitor {
	t.Helper()
	m := heartbeat.New(opts)
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Stop(context.Background()) })
	return m
}

// bubble runs a test on a clock of its own, which jumps when all wait.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

func answers(context.Context) error { return nil }
func fails(context.Context) error   { return errDead }

// silent is a peer that is gone, behind a client that heeds its context.
func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// full is a target with all optional parts.
type full struct {
	gate
	ready     func() bool
	heard     func() time.Duration
	ping      func(context.Context) error
	reconnect func(context.Context) error
}

func (f *full) Ready() bool                         { return f.ready == nil || f.ready() }
func (f *full) Ping(ctx context.Context) error      { return f.ping(ctx) }
func (f *full) Reconnect(ctx context.Context) error { return f.reconnect(ctx) }
func (f *full) Heard() time.Duration {
	if f.heard == nil {
		return -1
	}
	return f.heard()
}

// gate is a mutex for which the clock of a bubble waits: for a sync.Mutex it
// does not.
type gate struct {
	mu     sync.Mutex
	cond   *sync.Cond
	locked bool
}

func (g *gate) Lock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cond == nil {
		g.cond = sync.NewCond(&g.mu)
	}
	for g.locked {
		g.cond.Wait()
	}
	g.locked = true
}

func (g *gate) TryLock() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.locked
	g.locked = true
	return !was
}

func (g *gate) Unlock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.locked = false; g.cond != nil {
		g.cond.Broadcast()
	}
}

// pass lets time pass, and what happens at its end happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
