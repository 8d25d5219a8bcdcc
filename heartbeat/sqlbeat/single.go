package sqlbeat

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"deadpeer/heartbeat"
	"deadpeer/internal/holder"
)

// ErrNotConnected is the error of a [Single] that has no connection at present.
var ErrNotConnected = errors.New("not connected to the database")

// Single is one connection to a database, held for its pings alone, and a
// target of package heartbeat. The driver must be a driver.Pinger. Safe for
// concurrent use, but for Ping: one at a time, as a monitor pings.
type Single struct {
	connector driver.Connector
	held      holder.Of[*lone]
}

// lone is a connection that is of no pool.
type lone struct{ conn }

// Close leaves out the pool, which there is none of.
func (c *lone) Close() error { return c.kill() }

var _ heartbeat.Reconnecter = (*Single)(nil)

// NewSingle makes one that is not connected: its first pings fail, so that a
// monitor has it reconnect.
func NewSingle(c driver.Connector) *Single { return &Single{connector: c} }

// Ping has the driver ping.
func (s *Single) Ping(ctx context.Context) error {
	c, ok := s.held.Get()
	if !ok {
		return ErrNotConnected
	}
	return (*target)(&c.conn).Ping(ctx)
}

// Reconnect closes the connection, if any, and makes another.
func (s *Single) Reconnect(ctx context.Context) error { return s.held.Replace(ctx, s.connect) }

func (s *Single) connect(ctx context.Context) (*lone, error) {
	inner, err := connect(ctx, s.connector)
	if err != nil {
		return nil, fmt.Errorf("connect to database: %w", err)
	}
	return &lone{conn{inner: inner}}, nil
}

// connect opens a connection that can be pinged.
func connect(ctx context.Context, c driver.Connector) (driver.Conn, error) {
	inner, err := c.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, ok := inner.(driver.Pinger); !ok {
		err := fmt.Errorf("ping by %T: %w: it is no driver.Pinger", inner, errors.ErrUnsupported)
		return nil, errors.Join(err, inner.Close())
	}
	return inner, nil
}

// Close closes the connection. It may be called again.
func (s *Single) Close() error { return s.held.Close() }
