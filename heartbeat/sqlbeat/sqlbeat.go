// Package sqlbeat pings the idle connections of a database/sql pool. Those
// that fail are closed and never given out again, and a new one is opened
// ahead, so that the application's next query finds a living connection where
// it would have waited for a dead one.
//
//	db := sqlbeat.OpenDB(monitor, "orders", connector)
//
// Each connection is a target of its own, which waits for its turn like any. A
// connection in use is left alone: give queries a context with a deadline.
// Pings are those of the driver, which must be a driver.Pinger: pgx, lib/pq,
// go-sql-driver/mysql and nakagami/firebirdsql are.
//
// Works wherever database/sql does, with no privileges.
package sqlbeat

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"deadpeer/heartbeat"
)

// OpenDB is [sql.OpenDB] for a pool whose idle connections m pings. They are
// its targets as name#1, name#2, … until the pool closes them.
func OpenDB(m *heartbeat.Monitor, name string, c driver.Connector) *sql.DB {
	p := &pool{Connector: c, monitor: m, name: name, conns: map[*conn]struct{}{}}
	p.db = sql.OpenDB(p)
	return p.db
}

// Unwrap gives the driver's own connection for the one that [sql.Conn.Raw]
// has, and anything else as it is.
func Unwrap(driverConn any) any {
	if c, ok := driverConn.(*conn); ok {
		return c.inner
	}
	return driverConn
}

// pool is the connector of a pool.
type pool struct {
	driver.Connector
	monitor *heartbeat.Monitor
	name    string
	db      *sql.DB
	serial  atomic.Uint64

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{} // all targets
}

var (
	_ driver.Connector = (*pool)(nil)
	_ io.Closer        = (*pool)(nil)
)

// Connect opens a connection and has it pinged.
func (p *pool) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := connect(ctx, p.Connector)
	if err != nil {
		return nil, err
	}
	c := &conn{inner: inner, pool: p, inUse: true}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		c.handle = p.monitor.Add(fmt.Sprintf("%s#%d", p.name, p.serial.Add(1)), (*target)(c))
		p.conns[c] = struct{}{}
	}
	return c, nil
}

// forget ends the pinging of c.
func (p *pool) forget(c *conn) {
	p.mu.Lock()
	_, ours := p.conns[c]
	delete(p.conns, c)
	p.mu.Unlock()
	if ours {
		c.handle.Remove()
	}
}

// Close is called by the pool's own Close.
func (p *pool) Close() error {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		c.handle.Remove()
	}
	clear(p.conns)
	p.mu.Unlock()
	if c, ok := p.Connector.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
