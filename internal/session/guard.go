package session

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// guard is a driver's connector whose panics are errors. It stands between the
// driver and database/sql, which keeps its locks when a query panics, and which
// connects, rolls back and closes on goroutines of its own, where a panic would
// end the program.
type guard struct {
	driver.Connector
	engine Engine
}

// try calls f. What panics there is a driver at bytes of a server.
func try[T any](engine Engine, f func() (T, error)) (value T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the %s driver panicked at what the server sent: %v", engine, p)
		}
	}()
	return f()
}

func tryOnly(engine Engine, f func() error) error {
	_, err := try(engine, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// Connect logs in.
func (g guard) Connect(ctx context.Context) (driver.Conn, error) {
	return try(g.engine, func() (driver.Conn, error) {
		inner, err := g.Connector.Connect(ctx)
		if err != nil {
			return nil, err
		}
		c, ok := inner.(contextConn)
		if !ok {
			return nil, errors.Join(fmt.Errorf("use the %s driver: %w: %T takes no contexts", g.engine, errors.ErrUnsupported, inner), inner.Close())
		}
		return &guardedConn{c, g.engine}, nil
	})
}

// contextConn is what the drivers' connections are.
type contextConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
}

type guardedConn struct {
	contextConn
	engine Engine
}

func (c *guardedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return try(c.engine, func() (driver.Stmt, error) {
		inner, err := c.contextConn.PrepareContext(ctx, query)
		if err != nil {
			return nil, err
		}
		s, ok := inner.(contextStmt)
		if !ok {
			return nil, errors.Join(fmt.Errorf("use the %s driver: %w: %T takes no contexts", c.engine, errors.ErrUnsupported, inner), inner.Close())
		}
		return &guardedStmt{s, c.engine}, nil
	})
}

func (c *guardedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return try(c.engine, func() (driver.Tx, error) {
		tx, err := c.contextConn.BeginTx(ctx, opts)
		if err != nil {
			return nil, err
		}
		return &guardedTx{tx, c.engine}, nil
	})
}

func (c *guardedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return try(c.engine, func() (driver.Result, error) { return c.contextConn.ExecContext(ctx, query, args) })
}

func (c *guardedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return tryRows(c.engine, func() (driver.Rows, error) { return c.contextConn.QueryContext(ctx, query, args) })
}

func (c *guardedConn) Close() error { return tryOnly(c.engine, c.contextConn.Close) }

// ResetSession is called when the pool gives the connection out again.
func (c *guardedConn) ResetSession(ctx context.Context) error {
	r, ok := c.contextConn.(driver.SessionResetter)
	if !ok {
		return nil
	}
	err := tryOnly(c.engine, func() error { return r.ResetSession(ctx) })
	if err != nil {
		return errors.Join(err, driver.ErrBadConn) // after any other error the pool goes on with it
	}
	return nil
}

// IsValid is called when the pool gets the connection back.
func (c *guardedConn) IsValid() bool {
	v, ok := c.contextConn.(driver.Validator)
	return !ok || v.IsValid()
}

type contextStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type guardedStmt struct {
	contextStmt
	engine Engine
}

func (s *guardedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return try(s.engine, func() (driver.Result, error) { return s.contextStmt.ExecContext(ctx, args) })
}

func (s *guardedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return tryRows(s.engine, func() (driver.Rows, error) { return s.contextStmt.QueryContext(ctx, args) })
}

func (s *guardedStmt) Close() error { return tryOnly(s.engine, s.contextStmt.Close) }

type guardedTx struct {
	driver.Tx
	engine Engine
}

func (t *guardedTx) Commit() error   { return tryOnly(t.engine, t.Tx.Commit) }
func (t *guardedTx) Rollback() error { return tryOnly(t.engine, t.Tx.Rollback) }

type guardedRows struct {
	driver.Rows
	engine Engine
}

func tryRows(engine Engine, f func() (driver.Rows, error)) (driver.Rows, error) {
	return try(engine, func() (driver.Rows, error) {
		inner, err := f()
		if err != nil {
			return nil, err
		}
		return &guardedRows{inner, engine}, nil
	})
}

func (r *guardedRows) Next(dest []driver.Value) error {
	return tryOnly(r.engine, func() error { return r.Rows.Next(dest) })
}

func (r *guardedRows) Close() error { return tryOnly(r.engine, r.Rows.Close) }
