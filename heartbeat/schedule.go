package heartbeat

import (
	"context"
	"time"
)

// keepIdle is how many workers wait for work rather than end.
const keepIdle = 64

// grace is how much later than a call's context the scheduler looks whether it
// has returned.
func (m *Monitor) grace() time.Duration { return min(m.opts.Deadline/10, 100*time.Millisecond) }

// schedule is the one goroutine that looks at the clock.
func (m *Monitor) schedule() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	m.mu.Lock()
	for {
		m.sleeping = 0 // no need to rouse
		m.wheel.advance(m.tick(), m.expire)
		m.feed()
		if m.stopping && m.workers == 0 {
			break
		}
		wait := time.Hour
		m.sleeping = 1<<64 - 1
		if next, ok := m.wheel.next(); ok {
			m.sleeping = next
			wait = time.Until(m.base.Add(time.Duration(next) * tickTime))
		}
		m.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-m.kick:
		}
		m.mu.Lock()
	}
	m.mu.Unlock()
	close(m.done)
}

// expire queues h. A call that is still out has missed its deadline: its
// worker is written off.
func (m *Monitor) expire(h *Handle) {
	switch {
	case h.step == stepPingOverdue && h.has(pingOut) && !h.has(pingLost):
		h.flags |= pingLost
		m.hung++
		m.workers--
	case h.step == stepReconnectOverdue && h.has(reconnectOut) && !h.has(reconnectLost):
		h.flags |= reconnectLost
		m.hung++
		m.workers--
	}
	if !m.stopping {
		m.queue.push(h)
	}
}

// feed sees to it that a worker comes for what is queued. Only one is called
// at a time: it calls the next when it has come and there is more.
func (m *Monitor) feed() {
	switch {
	case m.waking || m.queue.first == nil:
	case m.idle > 0:
		m.waking = true
		m.wake.Signal()
	case m.workers < m.opts.Workers:
		m.waking = true
		m.workers++
		go m.work()
	}
}

// work does what is queued until there is nothing, or until this worker is
// written off for a call that took too long.
func (m *Monitor) work() {
	m.mu.Lock()
	m.waking = false
	var h *Handle
	var did step
	defer func() {
		if h != nil { // the target ended this goroutine
			m.mu.Lock()
			if m.goexit(h, did) {
				m.leave()
			}
			m.mu.Unlock()
		}
	}()
	for {
		if h = m.queue.pop(); h != nil {
			m.feed()
			did = h.step
			kept := m.do(h)
			h = nil
			if !kept {
				m.mu.Unlock()
				return
			}
			continue
		}
		if m.stopping || m.idle >= keepIdle {
			break
		}
		m.idle++
		m.wake.Wait()
		m.idle--
		m.waking = false
	}
	m.leave()
	m.mu.Unlock()
}

func (m *Monitor) leave() {
	m.workers--
	m.feed()
	if m.stopping && m.workers == 0 {
		m.rouse()
	}
}

// goexit takes h back from a target that called runtime.Goexit.
func (m *Monitor) goexit(h *Handle, did step) (kept bool) {
	if did == stepReconnect {
		return m.reconnected(h, 0, errGoexit)
	}
	return m.pinged(h, outcome{kind: Failed, err: errGoexit})
}

// queue is a list of handles, first in, first out.
type queue struct{ first, last *Handle }

func (q *queue) push(h *Handle) {
	h.next = nil
	if q.first == nil {
		q.first = h
	} else {
		q.last.next = h
	}
	q.last = h
}

func (q *queue) pop() *Handle {
	h := q.first
	if h != nil {
		q.first, h.next = h.next, nil
	}
	return h
}

// batch is the context of the pings that start in one tick, so that a ping
// costs neither memory nor a timer of the runtime.
type batch struct {
	ctx    context.Context
	cancel context.CancelFunc
	tick   uint64
	users  int
}

func (m *Monitor) join() *batch {
	now := m.tick()
	if m.batch == nil || m.batch.tick != now {
		if old := m.batch; old != nil && old.users == 0 {
			old.cancel()
		}
		ctx, cancel := context.WithTimeout(m.ctx, m.opts.Deadline)
		m.batch = &batch{ctx, cancel, now, 0}
	}
	m.batch.users++
	return m.batch
}

// part lets go of b. The present one is kept for those to come.
func (m *Monitor) part(b *batch) {
	if b.users--; b.users == 0 && b != m.batch {
		b.cancel()
	}
}
