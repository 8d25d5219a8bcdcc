// Package holder keeps the one connection of a heartbeat target: calls take
// it, and reconnecting replaces it, at the same time. Any OS, no privileges.
package holder

import (
	"context"
	"io"
	"net"
	"sync"
)

// Of holds one connection at most. The zero value is empty. Safe for
// concurrent use.
type Of[C io.Closer] struct {
	mu     sync.Mutex
	conn   *C
	closed bool
}

// Get gives the connection, and false when there is none.
func (h *Of[C]) Get() (conn C, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil {
		return conn, false
	}
	return *h.conn, true
}

// Replace closes the connection, if any, which ends the calls on it, and holds
// the one that dial makes. After Close the error is net.ErrClosed.
func (h *Of[C]) Replace(ctx context.Context, dial func(context.Context) (C, error)) error {
	if err := h.hold(nil); err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	if err := h.hold(&c); err != nil {
		_ = c.Close() // it was of no use to anybody
		return err
	}
	return nil
}

// Ask has ask use the connection, and is false when there is none. One that
// turns out to be broken is replaced by reconnect and asked again, once: servers
// end idle connections at any time, and the next one tells whether there is a
// server. After the end of ctx it is not.
func (h *Of[C]) Ask(ctx context.Context, reconnect func(context.Context) error, ask func(C) (broken bool, err error)) (held bool, err error) {
	c, ok := h.Get()
	if !ok {
		return false, nil
	}
	broken, err := ask(c)
	if !broken || ctx.Err() != nil {
		return true, err
	}
	if err := reconnect(ctx); err != nil {
		return true, err
	}
	if c, ok = h.Get(); !ok { // closed meanwhile
		return false, nil
	}
	_, err = ask(c)
	return true, err
}

// hold closes what is held and holds c.
func (h *Of[C]) hold(c *C) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return net.ErrClosed
	}
	old := h.conn
	h.conn = c
	h.mu.Unlock()
	if old != nil {
		_ = (*old).Close() // gone already, as likely as not
	}
	return nil
}

// Close closes the connection, for good. It may be called again.
func (h *Of[C]) Close() error {
	h.mu.Lock()
	old := h.conn
	h.conn, h.closed = nil, true
	h.mu.Unlock()
	if old == nil {
		return nil
	}
	return (*old).Close()
}
