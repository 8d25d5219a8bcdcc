package heartbeat

import (
	"context"
	"math"
	"runtime/debug"
	"time"
)

func (m *Monitor) reconnect(h *Handle) (kept bool) {
	if h.attempts < math.MaxUint8 {
		h.attempts++
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.opts.Deadline)
	defer cancel()
	m.reconnects[h] = cancel
	h.flags |= reconnectOut
	m.later(h, stepReconnectOverdue, m.opts.Deadline+m.grace())
	e := Event{Kind: Reconnecting, Handle: h, State: h.state, Was: h.state, Attempt: int(h.attempts)}
	m.mu.Unlock()
	m.emit(e)
	start := time.Now()
	err := callReconnect(ctx, h)
	took := time.Since(start)
	m.mu.Lock()
	return m.reconnected(h, took, err)
}

func callReconnect(ctx context.Context, h *Handle) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	r, _ := h.reconnecter()
	return r.Reconnect(ctx)
}

// reconnected takes h back from the call of its Reconnect.
func (m *Monitor) reconnected(h *Handle, took time.Duration, err error) (kept bool) {
	delete(m.reconnects, h)
	h.flags &^= reconnectOut
	if h.has(reconnectLost) {
		h.flags &^= reconnectLost
		m.hung--
		if h.onWheel() && h.step == stepReconnectOverdue {
			m.wheel.remove(h)
			h.failures = 0
			m.soon(h, stepPing) // which will tell
		}
		return false
	}
	m.wheel.remove(h)
	if err != nil && m.ctx.Err() != nil {
		return true // the monitor ended it
	}
	e := Event{Kind: Reconnected, State: h.state, Was: h.state, Attempt: int(h.attempts), Latency: took}
	if err != nil {
		e.Kind, e.Latency, e.Err, e.Wait = ReconnectFailed, 0, err, m.backoff(h.attempts)
		m.tell(h, e)
		m.resume(h, stepReconnect, e.Wait)
		return true
	}
	// A new connection has the failures before it that any has.
	h.failures = 0
	m.tell(h, e)
	if h.has(pingOut) {
		m.resume(h, stepPingOverdue, m.opts.Deadline)
	} else {
		m.resume(h, stepPing, 0)
	}
	return true
}

func (m *Monitor) reconnectOverdue(h *Handle) {
	if !h.has(reconnectOut) { // it returned since
		h.failures = 0
		m.soon(h, stepPing)
		return
	}
	m.tell(h, Event{Kind: ReconnectFailed, State: h.state, Was: h.state,
		Attempt: int(h.attempts), Err: ErrNotReturned, Wait: m.opts.Deadline})
	m.resume(h, stepReconnectOverdue, m.opts.Deadline)
}
