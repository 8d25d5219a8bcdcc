package sqlbeat

import (
	"context"
	"database/sql/driver"
	"fmt"
	"sync"
	"time"

	"deadpeer/heartbeat"
)

// patience is how long the application waits for a ping that is under way on
// the connection it wants. Then it gets another connection.
const patience = 200 * time.Millisecond

// conn is a connection of the pool. The pool says when it is used: it calls
// ResetSession to take an idle one and IsValid to put one back.
type conn struct {
	inner  driver.Conn
	pool   *pool
	handle *heartbeat.Handle

	mu      sync.Mutex
	inUse   bool
	doubted bool      // its last ping failed: it is not given out
	dead    bool      // closed, or about to be
	since   time.Time // when it was put back
	ping    *ping     // the one under way, nil for none
}

// ping is one that is under way.
type ping struct {
	cancel   context.CancelFunc
	returned chan struct{}
}

// target is a connection as the monitor sees it.
type target conn

var (
	_ heartbeat.Target      = (*target)(nil)
	_ heartbeat.Hearer      = (*target)(nil)
	_ heartbeat.Reconnecter = (*target)(nil)
)

// Heard says that a connection in use needs no ping.
func (t *target) Heard() time.Duration {
	c := (*conn)(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inUse {
		return 0
	}
	return time.Since(c.since)
}

// Ping has the driver ping an idle connection.
func (t *target) Ping(ctx context.Context) error {
	c := (*conn)(t)
	pinger, _ := c.inner.(driver.Pinger) // Connect saw to it
	c.mu.Lock()
	switch {
	case c.dead:
		c.mu.Unlock()
		return driver.ErrBadConn
	case c.inUse: // since it was asked what it has heard
		c.mu.Unlock()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &ping{cancel, make(chan struct{})}
	c.ping = p
	c.mu.Unlock()
	err := driver.ErrBadConn
	defer func() { // of a driver that panics, too
		c.mu.Lock()
		c.ping, c.doubted = nil, err != nil
		c.mu.Unlock()
		close(p.returned)
	}()
	err = pinger.Ping(ctx)
	return err
}

// Reconnect closes a connection that is down and opens another for the pool.
func (t *target) Reconnect(ctx context.Context) error {
	c := (*conn)(t)
	_ = c.kill() // nobody waits for a farewell to the dead
	if s := c.pool.db.Stats(); s.MaxOpenConnections == 0 || s.InUse < s.MaxOpenConnections {
		if err := c.pool.db.PingContext(ctx); err != nil {
			return err
		}
	}
	c.pool.forget(c)
	return nil
}

// kill closes the driver's connection, once, and not under a ping.
func (c *conn) kill() error {
	c.mu.Lock()
	p, again := c.ping, c.dead
	c.dead = true
	c.mu.Unlock()
	switch {
	case again:
		return nil
	case p == nil:
		return c.hangUp()
	}
	p.cancel()
	go func() {
		<-p.returned
		_ = c.hangUp() // the connection is gone anyway
	}()
	return nil
}

// hangUp has the driver close, for which some read a last answer. One that
// panics at that must not end the program, whose goroutine this may be.
func (c *conn) hangUp() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close database connection: %T panicked: %v", c.inner, p)
		}
	}()
	return c.inner.Close()
}

// Close is called by the pool. A connection that died is pinged no more by
// then, but the monitor still goes on to open another in its place.
func (c *conn) Close() error {
	c.mu.Lock()
	died := c.dead
	c.mu.Unlock()
	if died {
		return nil
	}
	c.pool.forget(c)
	return c.kill()
}

// take marks the connection as used, or is driver.ErrBadConn: then the pool
// takes another.
func (c *conn) take(ctx context.Context) error {
	c.mu.Lock()
	p := c.ping
	c.mu.Unlock()
	if p != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-p.returned:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.doubted || c.ping != nil {
		return driver.ErrBadConn
	}
	c.inUse = true
	return nil
}

// ResetSession is called when the pool takes an idle connection.
func (c *conn) ResetSession(ctx context.Context) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	if r, ok := c.inner.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

// IsValid is called when the pool puts a connection back.
func (c *conn) IsValid() bool {
	if v, ok := c.inner.(driver.Validator); ok && !v.IsValid() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inUse, c.since = false, time.Now()
	return !c.dead
}
