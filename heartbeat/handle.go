package heartbeat

import (
	"sync"
	"time"
)

// Handle is a target in its [Monitor]. Safe for concurrent use.
type Handle struct {
	// The lists of wheel and queue. prev is what points here on the wheel.
	next *Handle
	prev **Handle
	due  uint64 // tick

	monitor *Monitor
	target  Target
	name    string

	step     step
	flags    flags
	state    State
	attempts uint8 // to reconnect, since the last answer
	failures uint32
	latency  Latency
}

// step is what is to be done with a handle when its time has come.
type step uint8

const (
	stepPing step = iota
	stepPingOverdue
	stepReconnect
	stepReconnectOverdue
)

type flags uint8

const (
	removed       flags = 1 << iota
	pingOut             // a ping has not returned
	pingLost            // and is past its deadline: its worker is written off
	locking             // it waits for the target's lock
	reconnectOut        // the same for Reconnect
	reconnectLost       //
)

func (h *Handle) has(f flags) bool { return h.flags&f != 0 }

// worked says that a worker calls the target, and will take h off the wheel.
func (h *Handle) worked() bool {
	return h.step == stepPingOverdue && h.has(pingOut) && !h.has(pingLost) ||
		h.step == stepReconnectOverdue && h.has(reconnectOut) && !h.has(reconnectLost)
}

func (h *Handle) onWheel() bool { return h.prev != nil }

// Name is the name it was added with.
func (h *Handle) Name() string { return h.name }

// Target is the target it was added with.
func (h *Handle) Target() Target { return h.target }

// State is its state at present.
func (h *Handle) State() State {
	h.monitor.mu.Lock()
	defer h.monitor.mu.Unlock()
	return h.state
}

// Latency is how long the target took to answer.
func (h *Handle) Latency() Latency {
	h.monitor.mu.Lock()
	defer h.monitor.mu.Unlock()
	return h.latency
}

// PingNow brings the next ping or attempt to reconnect forward to now, such as
// after a change of network. It does nothing while one is under way.
func (h *Handle) PingNow() {
	m := h.monitor
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping || !h.onWheel() || h.step != stepPing && h.step != stepReconnect {
		return
	}
	m.wheel.remove(h)
	m.soon(h, h.step)
}

// Remove has the target pinged no more. It ends an attempt to reconnect, and
// leaves a ping that is under way to end by itself, unheeded.
func (h *Handle) Remove() {
	m := h.monitor
	m.mu.Lock()
	if h.has(removed) {
		m.mu.Unlock()
		return
	}
	h.flags |= removed
	if cancel := m.reconnects[h]; cancel != nil {
		cancel()
	}
	// What is queued or worked on is dropped by its worker, which tells.
	free := h.onWheel() && !h.worked()
	if free {
		m.wheel.remove(h)
	}
	delete(m.early, h)
	idle := !m.running || m.stopping
	state := h.state
	m.mu.Unlock()
	if free || idle {
		m.emit(Event{Kind: Removed, Handle: h, State: state, Was: state})
	}
}

// The optional parts of a target.

func (h *Handle) reconnecter() (Reconnecter, bool) {
	r, ok := h.target.(Reconnecter)
	return r, ok
}

func (h *Handle) locker() sync.Locker {
	l, _ := h.target.(sync.Locker)
	return l
}

// heard is how long ago the peer proved to be alive, and false when the target
// does not know.
func (h *Handle) heard() (time.Duration, bool) {
	t, ok := h.target.(Hearer)
	if !ok {
		return 0, false
	}
	ago := t.Heard()
	return ago, ago >= 0
}
