package heartbeat

import (
	"context"
	"errors"
	"runtime/debug"
	"time"
)

// outcome is how an attempt to ping went.
type outcome struct {
	kind    Kind
	latency time.Duration
	err     error
	batch   *batch
}

// do does what is due for h, which is in no list. It is called with the lock
// and returns with it. It is false when the worker was written off meanwhile.
func (m *Monitor) do(h *Handle) (kept bool) {
	switch {
	case m.stopping:
	case h.has(removed):
		m.drop(h)
	case h.step == stepPing:
		return m.ping(h)
	case h.step == stepPingOverdue:
		m.pingOverdue(h)
	case h.step == stepReconnect:
		return m.reconnect(h)
	case h.step == stepReconnectOverdue:
		m.reconnectOverdue(h)
	}
	return true
}

func (m *Monitor) ping(h *Handle) (kept bool) {
	b := m.join()
	h.flags |= pingOut
	state := h.state
	m.later(h, stepPingOverdue, m.opts.Deadline+m.grace())
	m.mu.Unlock()
	o := m.attempt(h, b, state)
	m.mu.Lock()
	m.part(o.batch)
	return m.pinged(h, o)
}

// attempt is all of a ping that is the target's code, which may panic, end
// the goroutine, or not return.
func (m *Monitor) attempt(h *Handle, b *batch, state State) (o outcome) {
	defer func() {
		if v := recover(); v != nil {
			o = outcome{kind: Failed, err: &PanicError{v, debug.Stack()}, batch: b}
		}
	}()
	if r, ok := h.target.(Readier); ok && !r.Ready() {
		return outcome{kind: Unready, batch: b}
	}
	if state != Suspect && state != Down {
		if ago, ok := h.heard(); ok && ago < m.period {
			return outcome{kind: Heard, latency: ago, batch: b}
		}
	}
	if l := h.locker(); l != nil {
		m.setLocking(h)
		l.Lock()
		defer l.Unlock()
		var wanted bool
		if b, wanted = m.locked(h, b); !wanted {
			return outcome{batch: b}
		}
	}
	if err := b.ctx.Err(); err != nil { // the target took all the time before
		return outcome{kind: Failed, err: err, batch: b}
	}
	m.emit(Event{Kind: Sent, Handle: h, State: state, Was: state})
	start := time.Now()
	err := h.target.Ping(b.ctx)
	took := time.Since(start)
	if err == nil {
		if u, ok := h.target.(Untimed); ok && u.Untimed() {
			took = -1
		}
		return outcome{kind: Answered, latency: took, batch: b}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		if ago, ok := h.heard(); ok && ago < took {
			return outcome{kind: Heard, latency: ago, batch: b}
		}
	}
	return outcome{kind: Failed, err: err, batch: b}
}

func (m *Monitor) setLocking(h *Handle) {
	m.mu.Lock()
	h.flags |= locking
	m.mu.Unlock()
}

// locked gives a ping that waited for its lock a new deadline. It is false
// when the worker was written off, so that the ping starts again, and when no
// ping is to begin any more.
func (m *Monitor) locked(h *Handle, b *batch) (*batch, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h.flags &^= locking
	if h.has(pingLost) || h.has(removed) || m.stopping {
		return b, false
	}
	m.part(b)
	m.wheel.remove(h)
	m.later(h, stepPingOverdue, m.opts.Deadline+m.grace())
	return m.join(), true
}

// pinged takes h back from the call of its ping.
func (m *Monitor) pinged(h *Handle, o outcome) (kept bool) {
	h.flags &^= pingOut | locking
	if h.has(pingLost) {
		h.flags &^= pingLost
		m.hung--
		if h.onWheel() && h.step == stepPingOverdue {
			m.wheel.remove(h)
			m.soon(h, stepPing) // it can be pinged again
		}
		return false
	}
	m.wheel.remove(h)
	if o.kind == 0 { // it did not begin
		m.resume(h, stepPing, 0)
		return true
	}
	m.settle(h, o)
	return true
}

func (m *Monitor) pingOverdue(h *Handle) {
	switch {
	case !h.has(pingOut): // it returned since
		m.soon(h, stepPing)
	case h.has(locking): // of the peer this says nothing
		m.tell(h, Event{Kind: Busy, State: h.state, Was: h.state})
		m.resume(h, stepPingOverdue, m.opts.Deadline)
	default:
		m.settle(h, outcome{kind: Failed, err: ErrNotReturned})
	}
}

// settle draws the conclusions of a ping.
func (m *Monitor) settle(h *Handle, o outcome) {
	if o.kind == Failed && m.ctx.Err() != nil {
		return // the monitor ended it
	}
	was := h.state
	switch o.kind {
	case Unready:
		h.state, h.failures, h.attempts = NotReady, 0, 0
	case Answered:
		if o.latency >= 0 {
			h.latency.add(o.latency)
		}
		h.state, h.failures, h.attempts = Up, 0, 0
	case Heard:
		h.state, h.failures, h.attempts = Up, 0, 0
	case Failed:
		h.failures++
		if int(h.failures) >= m.opts.Failures {
			h.state = Down
		} else if h.state != Down {
			h.state = Suspect
		}
	}
	now := h.state
	e := Event{Kind: o.kind, State: now, Was: was, Failures: int(h.failures), Latency: o.latency, Err: o.err}
	m.tell(h, e)
	if now != was {
		e.Kind = Changed
		m.tell(h, e)
	}
	wait := m.spread()
	switch _, ok := h.reconnecter(); {
	case o.kind == Heard:
		m.resume(h, stepPing, m.period-o.latency)
	case o.kind != Failed:
		m.resume(h, stepPing, wait)
	case ok && int(h.failures) >= m.opts.Failures:
		m.resume(h, stepReconnect, m.backoff(h.attempts))
	case h.has(pingOut):
		m.resume(h, stepPingOverdue, m.opts.Deadline)
	case int(h.failures) < m.opts.Failures:
		m.resume(h, stepPing, 0)
	default:
		m.resume(h, stepPing, wait)
	}
}

// resume gives h back to wheel or queue, unless it was removed meanwhile.
func (m *Monitor) resume(h *Handle, s step, wait time.Duration) {
	switch {
	case m.stopping:
	case h.has(removed):
		m.drop(h)
	case wait <= 0:
		m.soon(h, s)
	default:
		m.later(h, s, wait)
	}
}

// tell tells the observer of h, which is in no list. It lets go of the lock
// meanwhile. Of a target that was removed there is nothing more to tell.
func (m *Monitor) tell(h *Handle, e Event) {
	if h.has(removed) && e.Kind != Removed {
		return
	}
	e.Handle = h
	m.mu.Unlock()
	m.emit(e)
	m.mu.Lock()
}

func (m *Monitor) drop(h *Handle) { m.tell(h, Event{Kind: Removed, State: h.state, Was: h.state}) }
