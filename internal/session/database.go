package session

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// DefaultTimeout bounds every call that talks to a database.
const DefaultTimeout = 3 * time.Second

// Errors that callers branch on.
var (
	// ErrGone says that the session is not there any more, or not that one.
	ErrGone = errors.New("the session is gone")
	// ErrPrivilege is matched by what the database does not allow us; the
	// text names the GRANT.
	ErrPrivilege = errors.New("not allowed by the database")
	// ErrNoEnd is matched where an engine has no way to end a session.
	ErrNoEnd = fmt.Errorf("no way to end a session: %w", errors.ErrUnsupported)
)

// Options configure a DB. Zero values mean the defaults.
type Options struct {
	Timeout time.Duration // of each call (3 s)
}

// DB is a database that is looked into. It connects at the first call and
// keeps one connection. Safe for concurrent use; calls wait for each other.
// Close it.
type DB struct {
	source  Source
	timeout time.Duration
	dialect dialect
	pool    *sql.DB    // nil with ZEO
	mu      sync.Mutex // one call at a time
}

// dialect is how one engine is spoken to.
type dialect interface {
	// look reads everything there is to show.
	look(ctx context.Context, c *sql.Conn) (*View, error)
	// end ends a session, after last has agreed, which is called right
	// before the statement that ends it. ErrGone when it is another by now.
	end(ctx context.Context, c *sql.Conn, s *Session, last func() error) error
	// grant names what the database refused for want of privilege, or "".
	grant(err error) string
}

// Open prepares to look into a database. It does not connect yet.
func Open(source Source, o Options) (*DB, error) {
	d := &DB{source: source, timeout: cmp.Or(max(o.Timeout, 0), DefaultTimeout)}
	var connector driver.Connector
	var err error
	switch source.engine {
	case Firebird:
		d.dialect = firebird{source}
		connector, err = firebirdConnector(source)
	case PostgreSQL:
		d.dialect = postgres{source}
		connector, err = postgresConnector(source, d.timeout)
	case MySQL, MariaDB:
		d.dialect = mysql{source}
		connector, err = mysqlConnector(source, d.timeout)
	case ZEO:
		d.dialect = zeo{source}
	}
	switch {
	case d.dialect == nil:
		return nil, errors.New("open database: the zero source")
	case err != nil:
		return nil, fmt.Errorf("open %s: %s", source, source.scrub(err.Error()))
	case connector != nil:
		d.pool = sql.OpenDB(connector)
		d.pool.SetMaxOpenConns(1)
	}
	return d, nil
}

// Source is what the DB was opened with.
func (d *DB) Source() Source { return d.source }

// Look reads all sessions, their transactions, locks and waits, within the
// timeout. Without privilege a database shows a part only; a note says which
// GRANT shows the rest: pg_monitor (PostgreSQL), PROCESS (MySQL, MariaDB),
// RDB$ADMIN, or to be SYSDBA or the database's owner (Firebird).
func (d *DB) Look(ctx context.Context) (v *View, err error) {
	err = d.do(ctx, "look into", func(ctx context.Context, c *sql.Conn) error {
		v, err = d.dialect.look(ctx, c)
		if err == nil {
			v.sort()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// End ends the session in the database's own way, if it still is the one that
// Look showed: pg_terminate_backend (needs pg_signal_backend, and to be
// superuser for a superuser's session), KILL CONNECTION (needs CONNECTION
// ADMIN), DELETE FROM MON$ATTACHMENTS (needs what Look needs). last is called
// right before the statement that ends it is sent; its error keeps the session
// and is returned as it is. The error matches ErrGone, ErrPrivilege or
// ErrNoEnd where that is the cause. That the session has gone Look tells.
func (d *DB) End(ctx context.Context, s *Session, last func() error) error {
	var kept error
	err := d.do(ctx, "end session "+s.ID+" of", func(ctx context.Context, c *sql.Conn) error {
		return d.dialect.end(ctx, c, s, func() error {
			kept = last()
			return kept
		})
	})
	return cmp.Or(kept, err)
}

// Close closes the connection, if there is one.
func (d *DB) Close() error {
	if d.pool == nil {
		return nil
	}
	return d.pool.Close()
}

// do calls f with the connection, within the timeout. What comes back of an
// error is safe to show. A driver that panics at what a server sends has
// failed like any other.
func (d *DB) do(ctx context.Context, verb string, f func(context.Context, *sql.Conn) error) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s %s: its answer makes no sense: %s", verb, d.source, d.source.scrub(fmt.Sprint(p)))
		}
	}()
	var c *sql.Conn
	if d.pool != nil {
		if c, err = d.pool.Conn(ctx); err != nil {
			return d.failed(outer, ctx, "log in to", err)
		}
		defer func() { _ = c.Close() }() // gives it back to the pool
	}
	if err = f(ctx, c); err != nil {
		return d.failed(outer, ctx, verb, err)
	}
	return nil
}

// failed puts an error into words that are safe to show.
func (d *DB) failed(outer, ctx context.Context, verb string, err error) error {
	if outer.Err() != nil {
		return fmt.Errorf("%s %s: %w", verb, d.source, outer.Err())
	}
	for _, typed := range []error{ErrGone, ErrNoEnd} {
		if errors.Is(err, typed) {
			return fmt.Errorf("%s %s: %w", verb, d.source, typed)
		}
	}
	if grant := d.dialect.grant(err); grant != "" {
		return fmt.Errorf("%s %s: %w: %s", verb, d.source, ErrPrivilege, grant)
	}
	if ne, ok := errors.AsType[net.Error](err); ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || ok && ne.Timeout() {
		return fmt.Errorf("%s %s: no answer within %s: %w", verb, d.source, d.timeout, context.DeadlineExceeded)
	}
	message := err.Error()
	if e, ok := errors.AsType[*pgconn.PgError](err); ok { // without every address that was tried
		message = fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.Code)
	}
	return fmt.Errorf("%s %s: %s", verb, d.source, d.source.scrub(message))
}

// rows calls visit for each row of a query, up to a bound, which more than
// a database in its right mind has sessions.
func rows(ctx context.Context, c *sql.Conn, query string, visit func(scan func(...any) error) error, args ...any) error {
	r, err := c.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // Err has told
	for n := 0; r.Next(); n++ {
		if n == maxSessions {
			return fmt.Errorf("more than %d rows", maxSessions)
		}
		if err := visit(r.Scan); err != nil {
			return err
		}
	}
	return r.Err()
}
