package session

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// defaultTimeout bounds every call that talks to a database.
const defaultTimeout = 3 * time.Second

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
	// Within calls its argument on a thread of the network namespace that TCP
	// connections are made from (the caller's own). Names are resolved in the
	// caller's own, whatever it says.
	Within func(func() error) error
}

// DB is a database that is looked into. It connects at the first call and
// keeps one connection. Safe for concurrent use; calls wait for each other.
// Close it.
type DB struct {
	source  Source
	timeout time.Duration
	dialect dialect
	pool    *sql.DB       // nil with ZEO
	turn    chan struct{} // holds one while a call is under way
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
	d := &DB{source: source, timeout: cmp.Or(max(o.Timeout, 0), defaultTimeout), turn: make(chan struct{}, 1)}
	dial := dialer{within: o.Within}
	var connector driver.Connector
	var err error
	switch source.engine {
	case Firebird:
		d.dialect = firebird{source}
		connector, err = firebirdConnector(source, dial)
	case PostgreSQL:
		d.dialect = postgres{source}
		connector, err = postgresConnector(source, d.timeout, dial)
	case MySQL, MariaDB:
		d.dialect = &mysql{source: source}
		connector, err = mysqlConnector(source, d.timeout, dial)
	case ZEO:
		d.dialect = zeo{source, dial}
	}
	switch {
	case d.dialect == nil:
		return nil, errors.New("open database: the zero source")
	case err != nil:
		return nil, fmt.Errorf("open %s: %s", source, source.scrub(err.Error()))
	case connector != nil:
		d.pool = sql.OpenDB(guard{connector, source.engine})
		d.pool.SetMaxOpenConns(1)
	}
	return d, nil
}

// Source is what the DB was opened with.
func (d *DB) Source() Source { return d.source }

// Look reads all sessions, their transactions, locks and waits, within the
// timeout. Without privilege a database shows a part only; a note says which
// GRANT shows the rest: pg_monitor (PostgreSQL), PROCESS (MySQL, MariaDB),
// SELECT on performance_schema (MySQL), RDB$ADMIN, or to be SYSDBA or the
// database's owner (Firebird).
func (d *DB) Look(ctx context.Context) (*View, error) {
	return do(ctx, d, "look into", func(ctx context.Context, c *sql.Conn) (*View, error) {
		v, err := d.dialect.look(ctx, c)
		if err == nil {
			v.sort()
		}
		return v, err
	})
}

// End ends the session in the database's own way, if it still is the one that
// Look showed: pg_terminate_backend (needs pg_signal_backend, and to be
// superuser for a superuser's session), KILL CONNECTION (needs CONNECTION
// ADMIN), DELETE FROM MON$ATTACHMENTS (needs what Look needs). last is called
// right before the statement that ends it is sent; its error keeps the session
// and is returned as it is. The error matches ErrGone, ErrPrivilege or
// ErrNoEnd where that is the cause. That the session has gone Look tells.
func (d *DB) End(ctx context.Context, s *Session, last func() error) error {
	kept, err := do(ctx, d, "end session "+s.ID+" of", func(ctx context.Context, c *sql.Conn) (kept error, err error) {
		err = d.dialect.end(ctx, c, s, func() error {
			if ctx.Err() != nil {
				return ctx.Err() // nobody waits for it any more
			}
			kept = last()
			return kept
		})
		return kept, err
	})
	return cmp.Or(kept, err)
}

// Close logs out, if the server still answers.
func (d *DB) Close() error {
	if d.pool == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- d.pool.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(overrun):
		return fmt.Errorf("log out of %s: %w", d.source, context.DeadlineExceeded)
	}
}

// overrun is how long a call may take to notice that its time is up. The
// Firebird driver, for one, takes no dialer and so gives us no hold on its
// connection, and waits 10 s for a silent server's last word at every
// statement and transaction that it gives up.
const overrun = 300 * time.Millisecond

// do calls f with the connection, within the timeout. What comes back of an
// error is safe to show. A call that overruns is left to end by itself, at the
// latest with the driver's own timeouts; until then others have no turn.
func do[T any](ctx context.Context, d *DB, verb string, f func(context.Context, *sql.Conn) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	late := time.NewTimer(d.timeout + overrun)
	defer late.Stop()
	done := make(chan result, 1)
	select {
	case d.turn <- struct{}{}:
		go func() {
			defer func() { <-d.turn }()
			var r result
			r.value, r.err = call(outer, ctx, d, verb, f)
			done <- r
		}()
	case <-ctx.Done():
		return result{}.value, d.failed(outer, ctx, verb, ctx.Err())
	}
	canceled := outer.Done()
	for {
		select {
		case r := <-done:
			return r.value, r.err
		case <-canceled:
			canceled = nil
			late.Reset(overrun)
		case <-late.C:
			return result{}.value, d.failed(outer, ctx, verb, context.DeadlineExceeded)
		}
	}
}

// call is do without its bound.
func call[T any](outer, ctx context.Context, d *DB, verb string, f func(context.Context, *sql.Conn) (T, error)) (value T, err error) {
	var c *sql.Conn
	if d.pool != nil {
		if c, err = d.pool.Conn(ctx); err != nil {
			return value, d.failed(outer, ctx, "log in to", err)
		}
		defer func() { _ = c.Close() }() // gives it back to the pool
	}
	if value, err = try(d.source.engine, func() (T, error) { return f(ctx, c) }); err != nil {
		if c != nil { // what state it is in nobody knows: the next call has a new one
			_ = c.Raw(func(any) error { return driver.ErrBadConn })
		}
		return value, d.failed(outer, ctx, verb, err)
	}
	return value, nil
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
		return fmt.Errorf("%s %s: %w", verb, d.source, noAnswer(d.timeout))
	}
	// One of the addresses and attempts that pgx tells of is enough.
	message := err.Error()
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		message = fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.Code)
	} else if e, ok := errors.AsType[*net.OpError](err); ok {
		message = e.Error()
	}
	return fmt.Errorf("%s %s: %s", verb, d.source, d.source.scrub(message))
}

// noAnswer is how long none came. It matches context.DeadlineExceeded.
type noAnswer time.Duration

func (n noAnswer) Error() string { return "no answer within " + time.Duration(n).String() }

func (noAnswer) Is(target error) bool { return target == context.DeadlineExceeded }

// querier is a connection or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// rows calls visit for each row of a query, up to a bound: a database in its
// right mind has fewer sessions.
func rows(ctx context.Context, c querier, query string, visit func(scan func(...any) error) error) error {
	r, err := c.QueryContext(ctx, query)
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
