package sqlbeat

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"

	"deadpeer/heartbeat"
)

// ErrNotConnected is the error of a [Single] that has no connection at present.
var ErrNotConnected = errors.New("not connected to the database")

// Single is one connection to a database, held for its pings alone, and a
// target of package heartbeat. The driver must be a driver.Pinger. Safe for
// concurrent use.
type Single struct {
	connector driver.Connector

	mu     sync.Mutex
	conn   *conn
	closed bool
}

var _ heartbeat.Reconnecter = (*Single)(nil)

// NewSingle makes one that is not connected: its first pings fail, so that a
// monitor has it reconnect.
func NewSingle(c driver.Connector) *Single { return &Single{connector: c} }

// Ping has the driver ping.
func (s *Single) Ping(ctx context.Context) error {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c == nil {
		return ErrNotConnected
	}
	return (*target)(c).Ping(ctx)
}

// Reconnect closes the connection, if any, and makes another.
func (s *Single) Reconnect(ctx context.Context) error {
	s.mu.Lock()
	old := s.conn
	s.conn = nil
	s.mu.Unlock()
	if old != nil {
		_ = old.kill() // nobody waits for a farewell to the dead
	}
	inner, err := s.connector.Connect(ctx)
	if err != nil {
		return err
	}
	if _, ok := inner.(driver.Pinger); !ok {
		err := fmt.Errorf("ping by %T: %w: it is no driver.Pinger", inner, errors.ErrUnsupported)
		return errors.Join(err, inner.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(errors.New("closed meanwhile"), inner.Close())
	}
	s.conn = &conn{inner: inner}
	return nil
}

// Close closes the connection.
func (s *Single) Close() error {
	s.mu.Lock()
	c := s.conn
	s.conn, s.closed = nil, true
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.kill()
}
