package sqlbeat_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/sqlbeat"
)

// server is a database whose connections can die, and that notes who uses
// them at the same time.
type server struct {
	t *testing.T

	mu    sync.Mutex
	conns []*connection
}

func (s *server) Connect(context.Context) (driver.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &connection{server: s, number: len(s.conns) + 1}
	s.conns = append(s.conns, c)
	return c, nil
}

func (s *server) Driver() driver.Driver { return nil }

func (s *server) number(n int) *connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > len(s.conns) {
		return &connection{}
	}
	return s.conns[n-1]
}

func (s *server) kill(n int) {
	c := s.number(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}

type connection struct {
	server *server
	number int

	mu     sync.Mutex
	dead   bool
	busy   bool
	closed int
	pings  int
}

func (c *connection) use(ctx context.Context) error {
	c.mu.Lock()
	if c.busy {
		c.server.t.Errorf("connection %d is used by two at a time", c.number)
	}
	if c.closed > 0 {
		c.server.t.Errorf("connection %d is used after it was closed", c.number)
	}
	c.busy = true
	dead := c.dead
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.busy = false
		c.mu.Unlock()
	}()
	if dead {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (c *connection) Ping(ctx context.Context) error {
	c.mu.Lock()
	c.pings++
	c.mu.Unlock()
	return c.use(ctx)
}

func (c *connection) ExecContext(ctx context.Context, _ string, _ []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(c.number), c.use(ctx)
}

func (c *connection) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("not prepared for this")
}
func (c *connection) Begin() (driver.Tx, error) { return tx{}, c.use(context.Background()) }
func (c *connection) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed++; c.closed > 1 {
		c.server.t.Errorf("connection %d is closed twice", c.number)
	}
	return nil
}

type tx struct{}

func (tx) Commit() error   { return nil }
func (tx) Rollback() error { return nil }

func (c *connection) get() (pings, closed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pings, c.closed
}

// exec runs a statement and tells on which connection.
func exec(t *testing.T, db interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := db.ExecContext(ctx, "UPDATE")
	if err != nil {
		t.Fatal(err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func open(t *testing.T, period time.Duration) (*server, *sql.DB) {
	t.Helper()
	m := heartbeat.New(heartbeat.Options{
		Period: period, Deadline: 50 * time.Millisecond, BackoffMin: 10 * time.Millisecond, Observer: heartbeat.Observers(),
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t}
	db := sqlbeat.OpenDB(m, "db", s)
	t.Cleanup(func() {
		if err := errors.Join(db.Close(), m.Stop(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return s, db
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within 30 s", what)
		}
	}
}

func TestDeadConnectionIsReplacedAhead(t *testing.T) {
	t.Parallel()
	s, db := open(t, 20*time.Millisecond)
	if n := exec(t, db); n != 1 {
		t.Fatalf("ran on connection %d", n)
	}
	await(t, "pings", func() bool { pings, _ := s.number(1).get(); return pings > 2 })
	s.kill(1)
	await(t, "another connection", func() bool { pings, _ := s.number(2).get(); return pings > 0 })
	if _, closed := s.number(1).get(); closed != 1 {
		t.Errorf("the dead connection was closed %d times", closed)
	}
	if n := exec(t, db); n != 2 {
		t.Errorf("ran on connection %d, want the new one", n)
	}
}

func TestConnectionInUseIsLeftAlone(t *testing.T) {
	t.Parallel()
	s, db := open(t, 5*time.Millisecond)
	exec(t, db)
	await(t, "pings", func() bool { pings, _ := s.number(1).get(); return pings > 2 })
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := s.number(1).get()
	time.Sleep(100 * time.Millisecond)
	if after, _ := s.number(1).get(); after != before {
		t.Errorf("pinged %d times while in use", after-before)
	}
	if err := c.Raw(func(dc any) error {
		if _, ok := sqlbeat.Unwrap(dc).(*connection); !ok {
			t.Errorf("Unwrap gave %T", sqlbeat.Unwrap(dc))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "pings again", func() bool { after, _ := s.number(1).get(); return after > before })
}

// Applications and pings at the same time: the driver never sees two.
func TestNoTwoAtATime(t *testing.T) {
	t.Parallel()
	s, db := open(t, time.Millisecond)
	db.SetMaxIdleConns(4)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 300 {
				if i%3 == 0 {
					tx, err := db.BeginTx(t.Context(), nil)
					if err == nil {
						err = tx.Commit()
					}
					if err != nil {
						t.Error(err)
					}
				} else {
					exec(t, db)
				}
				if i%50 == 0 {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	all.Wait()
	if pings, _ := s.number(1).get(); pings == 0 {
		t.Error("no ping happened")
	}
}

// While a ping is out the application waits a little, then gets another
// connection.
func TestNobodyWaitsForAPing(t *testing.T) {
	t.Parallel()
	s, db := open(t, 10*time.Millisecond)
	exec(t, db)
	s.kill(1)
	await(t, "a ping of the dead", func() bool { pings, _ := s.number(1).get(); return pings > 0 })
	if n := exec(t, db); n == 1 {
		t.Error("ran on the dead connection")
	}
}

// plain is a driver that cannot ping.
type plain struct{ driver.Conn }

func (plain) Close() error { return nil }

type plainConnector struct{}

func (plainConnector) Connect(context.Context) (driver.Conn, error) { return plain{}, nil }
func (plainConnector) Driver() driver.Driver                        { return nil }

func TestDriverMustPing(t *testing.T) {
	t.Parallel()
	m := heartbeat.New(heartbeat.Options{})
	db := sqlbeat.OpenDB(m, "db", plainConnector{})
	defer db.Close()
	if _, err := db.Conn(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want unsupported", err)
	}
	if err := sqlbeat.NewSingle(plainConnector{}).Reconnect(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want unsupported", err)
	}
}

func TestSingle(t *testing.T) {
	t.Parallel()
	s := &server{t: t}
	single := sqlbeat.NewSingle(s)
	if err := single.Ping(t.Context()); !errors.Is(err, sqlbeat.ErrNotConnected) {
		t.Errorf("got %v", err)
	}
	for range 2 {
		if err := errors.Join(single.Reconnect(t.Context()), single.Ping(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if _, closed := s.number(1).get(); closed != 1 {
		t.Error("the first connection is still open")
	}
	if err := errors.Join(single.Close(), single.Close()); err != nil {
		t.Fatal(err)
	}
	if _, closed := s.number(2).get(); closed != 1 {
		t.Error("the second connection is still open")
	}
	if err := single.Reconnect(t.Context()); err == nil {
		t.Error("a closed one connects")
	}
}

// gruff panics at the server's farewell.
type gruff struct{ *connection }

func (gruff) Close() error { panic("index out of range") }

type gruffServer struct{ server }

func (s *gruffServer) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := s.server.Connect(ctx)
	return gruff{c.(*connection)}, err
}

// Nobody is there to take the panic of a driver that closes a connection after
// the ping that was under way.
func TestDriverPanicsAtClosing(t *testing.T) {
	t.Parallel()
	s := &gruffServer{server{t: t}}
	x := sqlbeat.NewSingle(s)
	if err := x.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := x.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err == nil || !strings.Contains(err.Error(), "sqlbeat_test.gruff panicked: index out of range") {
		t.Errorf("got %v", err)
	}
}
