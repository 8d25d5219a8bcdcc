package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// Monitor pings targets. Safe for concurrent use.
type Monitor struct {
	opts Options

	mu       sync.Mutex           // guards all below and the handles
	wake     sync.Cond            // of workers that have nothing to do
	base     time.Time            // tick 0
	wheel    wheel                // handles that wait for their time
	queue    queue                // handles whose time has come
	early    map[*Handle]struct{} // added before the start, not removed
	batch    *batch               // of pings that start now
	sleeping uint64               // tick until which the scheduler sleeps
	kick     chan struct{}

	period   time.Duration
	started  bool
	running  bool // early is empty for good
	stopping bool
	ctx      context.Context // of all calls
	cancel   context.CancelFunc
	done     chan struct{} // closed when scheduler and workers have ended

	workers int  // all but those written off
	idle    int  // of them, waiting for wake
	waking  bool // one has been called and has not come yet
	hung    int  // calls past their deadline, each with a worker written off
	// reconnects has what ends the attempts that are under way.
	reconnects map[*Handle]context.CancelFunc
}

// ErrStarted is the error of a second [Monitor.Start].
var ErrStarted = errors.New("heartbeat monitor was started already")

// New makes a monitor, which does nothing before [Monitor.Start].
func New(opts Options) *Monitor {
	m := &Monitor{
		opts:       opts.withDefaults(),
		kick:       make(chan struct{}, 1),
		done:       make(chan struct{}),
		early:      map[*Handle]struct{}{},
		reconnects: map[*Handle]context.CancelFunc{},
	}
	m.wake.L = &m.mu
	return m
}

// Start begins to ping, until [Monitor.Stop] or the end of ctx. Without a
// period it does nothing and returns nil, and says so to the observer; see
// [Monitor.Period]. A second start is [ErrStarted]. A period in the environment
// that cannot be read is an error.
func (m *Monitor) Start(ctx context.Context) error {
	period, err := m.opts.period()
	if err != nil {
		return err
	}
	m.mu.Lock()
	if m.started || m.stopping {
		m.mu.Unlock()
		return ErrStarted
	}
	if period <= 0 {
		m.mu.Unlock()
		m.emit(Event{Kind: NotStarted})
		return nil
	}
	m.started, m.period = true, max(period, time.Millisecond)
	m.base, m.wheel.now = time.Now(), 0
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.mu.Unlock()

	// Before the first event of a target.
	m.emit(Event{Kind: Started, Wait: m.period})

	m.mu.Lock()
	defer m.mu.Unlock()
	for h := range m.early {
		m.later(h, stepPing, m.spread())
	}
	m.early, m.running = nil, true
	go m.schedule()
	context.AfterFunc(m.ctx, m.beginStop)
	return nil
}

// Period is the period in force, 0 when the monitor has not started.
func (m *Monitor) Period() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.period
}

// Stop begins no more pings, ends attempts to reconnect and waits for the
// pings under way, at most for their deadline. When ctx is done first their
// contexts are cancelled, and the error matches ctx's. An error also tells of
// calls that ignored their deadline and are still out. A monitor that was
// stopped cannot be started again.
func (m *Monitor) Stop(ctx context.Context) error {
	m.mu.Lock()
	if !m.started {
		m.stopping = true
		m.mu.Unlock()
		return nil
	}
	m.mu.Unlock()
	m.beginStop()
	select {
	case <-m.done:
	case <-ctx.Done():
		m.cancel()
		return fmt.Errorf("wait for pings under way: %w", ctx.Err())
	}
	m.cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hung > 0 {
		return fmt.Errorf("stop heartbeat: %d: %w", m.hung, ErrNotReturned)
	}
	return nil
}

func (m *Monitor) beginStop() {
	m.mu.Lock()
	first := !m.stopping
	m.stopping = true
	m.queue = queue{}
	for _, cancel := range m.reconnects {
		cancel()
	}
	m.wake.Broadcast()
	m.rouse()
	m.mu.Unlock()
	if first {
		m.emit(Event{Kind: Stopped})
	}
}

// Add has t pinged, first after one period. Names are for people and need not
// be unique. A monitor that was stopped does nothing with it.
func (m *Monitor) Add(name string, t Target) *Handle {
	h := &Handle{monitor: m, name: name, target: t}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.stopping:
	case !m.running:
		m.early[h] = struct{}{}
	default:
		m.later(h, stepPing, m.spread())
	}
	return h
}

// spread is the time to the next ping: a period, or a little less.
func (m *Monitor) spread() time.Duration {
	return m.period - time.Duration(m.opts.Jitter*rand.Float64()*float64(m.period))
}

// backoff is the time to the next attempt after n failed ones: full jitter
// under a bound that doubles.
func (m *Monitor) backoff(n uint8) time.Duration {
	if n == 0 {
		return 0
	}
	bound := min(float64(m.opts.BackoffMin)*math.Exp2(float64(n-1)), float64(m.opts.BackoffMax))
	return time.Duration(rand.Float64() * bound)
}

// tick is the present. It is rounded down, and due times up, so that nothing
// is early.
func (m *Monitor) tick() uint64 { return uint64(time.Since(m.base) / tickTime) }

const tickTime = time.Millisecond

// later puts h on the wheel.
func (m *Monitor) later(h *Handle, step step, wait time.Duration) {
	h.step = step
	h.due = uint64((time.Since(m.base) + max(wait, 0) + tickTime - 1) / tickTime)
	m.wheel.insert(h)
	if h.due < m.sleeping {
		m.rouse()
	}
}

// soon puts h at the end of those whose time has come.
func (m *Monitor) soon(h *Handle, step step) {
	if h.step = step; m.stopping {
		return
	}
	m.queue.push(h)
	m.feed()
}

// rouse has the scheduler look at the wheel.
func (m *Monitor) rouse() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// emit tells the observer. It must be called without the lock.
func (m *Monitor) emit(e Event) { observe(m.opts.Observer, e) }
