package heartbeat

import (
	"context"
	"database/sql"
	"slices"
	"sync"
	"testing"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/sqlbeat"
	"deadpeer/internal/servertest"
)

// A path that has forgotten a pool's idle connections: without the heartbeat
// the next query hangs, with it the next query succeeds at once on a fresh
// connection.
func TestPoolHealsBeforeTheApplicationNotices(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	postgres(t, l.server)
	d := newDiary()
	m := heartbeat.New(heartbeat.Options{
		Period: 300 * time.Millisecond, Deadline: 700 * time.Millisecond,
		BackoffMin: 100 * time.Millisecond, BackoffMax: 200 * time.Millisecond, Observer: d,
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Stop(context.Background()) }()

	var ports sync.Map
	plain := sql.OpenDB(l.pgx(t, &ports))
	defer plain.Close()
	beaten := sqlbeat.OpenDB(m, "orders", l.pgx(t, &ports))
	defer beaten.Close()
	backends := map[*sql.DB][]int{}
	for _, db := range []*sql.DB{plain, beaten} {
		servertest.Await(t, "PostgreSQL to answer", func() bool { return db.PingContext(t.Context()) == nil })
		backends[db] = use(t, db, 2)
	}
	time.Sleep(time.Second)
	var old []uint16
	ports.Range(func(port, _ any) bool { old = append(old, port.(uint16)); return true })
	if err := l.link.CutPorts(old...); err != nil {
		t.Fatal(err)
	}
	// One of the two is found down, and at the latest then the other leaves
	// the pool, too; a new one takes their place.
	servertest.Await(t, "the pool to heal", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for name, n := range d.answers {
			if n > 0 && name != "orders#1" && name != "orders#2" {
				return d.reconnects["orders#1"]+d.reconnects["orders#2"] > 0
			}
		}
		return false
	})

	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var backend int
	err := plain.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&backend)
	t.Logf("without the heartbeat: %v after %.2f s", err, time.Since(begin).Seconds())
	if err == nil {
		t.Errorf("the plain pool's next query succeeded: the path did not forget")
	}

	begin = time.Now()
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := beaten.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		t.Fatalf("the query failed after %v: %v", time.Since(begin), err)
	}
	t.Logf("with it: answered after %.4f s", time.Since(begin).Seconds())
	if slices.Contains(backends[beaten], backend) {
		t.Error("answered by a connection that is dead")
	}
	if err := beaten.Close(); err != nil {
		t.Error(err)
	}
}

// use has a pool open n connections and put them back.
func use(t *testing.T, db *sql.DB, n int) (backends []int) {
	t.Helper()
	db.SetMaxIdleConns(n)
	var held []*sql.Conn
	for range n {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		var pid int
		if err := c.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		backends = append(backends, pid)
	}
	for _, c := range held {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return backends
}
