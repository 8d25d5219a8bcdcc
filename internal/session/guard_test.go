package session

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fragile is a driver that panics in one of its methods. Its statements have no
// rows, and with hang they last as long as their context.
type fragile struct {
	in      string
	hang    bool
	entered *atomic.Int64 // calls of that method
}

func (f fragile) call(method string) {
	if method == f.in {
		f.entered.Add(1)
		panic("index out of range [hunter2]\x1b[2J")
	}
}

func (f fragile) Driver() driver.Driver { return nil }
func (f fragile) Connect(context.Context) (driver.Conn, error) {
	f.call("Connect")
	return f, nil
}
func (f fragile) Prepare(string) (driver.Stmt, error)        { return nil, driver.ErrSkip }
func (f fragile) Begin() (driver.Tx, error)                  { return nil, driver.ErrSkip }
func (f fragile) CheckNamedValue(*driver.NamedValue) error   { return nil }
func (f fragile) Commit() error                              { return nil }
func (f fragile) Columns() []string                          { return []string{"a"} }
func (f fragile) Rollback() error                            { f.call("Rollback"); return nil }
func (f fragile) Next([]driver.Value) error                  { f.call("Next"); return io.EOF }
func (f fragile) ResetSession(context.Context) error         { f.call("ResetSession"); return nil }
func (f fragile) NumInput() int                              { return -1 }
func (f fragile) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }
func (f fragile) Query([]driver.Value) (driver.Rows, error)  { return nil, driver.ErrSkip }
func (f fragile) Close() error {
	f.call("Close")
	return nil
}

func (f fragile) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	f.call("BeginTx")
	return f, nil
}

func (f fragile) PrepareContext(context.Context, string) (driver.Stmt, error) {
	f.call("PrepareContext")
	return fragileStmt{f}, nil
}

func (f fragile) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	f.call("ExecContext")
	return driver.ResultNoRows, nil
}

func (f fragile) QueryContext(ctx context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	f.call("QueryContext")
	if query == "prepared" {
		return nil, driver.ErrSkip
	}
	if f.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f, nil
}

type fragileStmt struct{ fragile }

func (s fragileStmt) ExecContext(context.Context, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}

func (s fragileStmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	s.call("Stmt.QueryContext")
	return s.fragile, nil
}

// everything is a look that uses all that looks use.
type everything struct{}

func (everything) look(ctx context.Context, c *sql.Conn) (*View, error) {
	tx, err := c.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // after Rollback it does nothing
	if _, err := tx.ExecContext(ctx, "exec"); err != nil {
		return nil, err
	}
	for _, query := range []string{"query", "prepared"} {
		if err := rows(ctx, tx, query, func(func(...any) error) error { return nil }); err != nil {
			return nil, err
		}
	}
	return &View{}, tx.Rollback()
}

func (everything) end(context.Context, *sql.Conn, *Session, func() error) error { return nil }
func (everything) grant(error) string                                           { return "" }

func openFragile(t *testing.T, f fragile, timeout time.Duration) *DB {
	t.Helper()
	source, err := Parse("firebird://u:hunter2@h/d", env())
	if err != nil {
		t.Fatal(err)
	}
	d := &DB{source: source, timeout: timeout, dialect: everything{}, turn: make(chan struct{}, 1)}
	d.pool = sql.OpenDB(guard{f, source.engine})
	d.pool.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// A driver that panics costs its own look, wherever it does, and the next one
// has a new connection.
func TestDriverPanics(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"Connect", "BeginTx", "ExecContext", "QueryContext", "Next", "PrepareContext", "Stmt.QueryContext", "Rollback"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			f := fragile{in: method, entered: new(atomic.Int64)}
			d := openFragile(t, f, 10*time.Second)
			for n := int64(1); n <= 2; n++ {
				_, err := d.Look(t.Context())
				if err == nil || f.entered.Load() < n || strings.ContainsAny(err.Error(), "\x1b\n") || strings.Contains(err.Error(), "hunter2") ||
					!strings.Contains(err.Error(), "firebird://u@h:3050/d: the firebird driver panicked at what the server sent: index out of range") {
					t.Errorf("look %d: %v", n, err)
				}
			}
		})
	}
}

// What database/sql does by itself when time is up must not end the program.
func TestDriverPanicsOnItsOwn(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"Rollback", "Close"} {
		f := fragile{in: method, hang: true, entered: new(atomic.Int64)}
		d := openFragile(t, f, 50*time.Millisecond)
		if _, err := d.Look(t.Context()); err == nil {
			t.Error("no error")
		}
		_ = d.Close()
		for end := time.Now().Add(20 * time.Second); f.entered.Load() == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if f.entered.Load() == 0 {
			t.Errorf("%s was not called", method)
		}
	}
}
