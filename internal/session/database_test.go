package session

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// listen gives a listener, and calls serve for each connection.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

func open(t *testing.T, url string, o Options) *DB {
	t.Helper()
	s, err := Parse(url, env("ISC_USER", "u", "USER", "u"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := Open(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// A server that takes the connection and says nothing costs its timeout.
func TestHung(t *testing.T) {
	t.Parallel()
	addr := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	for _, scheme := range []string{"firebird", "postgres", "mysql", "mariadb", "zeo"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			db := open(t, scheme+"://u:hunter2@"+addr+"/d", Options{Timeout: 200 * time.Millisecond})
			_, err := db.Look(t.Context())
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer within 200ms") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := db.Look(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("canceled: %v", err)
			}
		})
	}
}

// A server that is down says so at once; one that talks nonsense is refused.
func TestDownAndNonsense(t *testing.T) {
	t.Parallel()
	down := listen(t, func(net.Conn) {}) // closes at once
	nonsense := listen(t, func(c net.Conn) {
		_, _ = c.Write([]byte(strings.Repeat("\x1b[2J\x7f\xff\x00\x00", 100)))
		_, _ = io.Copy(io.Discard, c)
	})
	for _, scheme := range []string{"firebird", "postgres", "mysql", "zeo"} {
		for what, addr := range map[string]string{"refused": "127.0.0.1:1", "closed": down, "nonsense": nonsense} {
			t.Run(scheme+" "+what, func(t *testing.T) {
				t.Parallel()
				db := open(t, scheme+"://u:hunter2@"+addr+"/d", Options{Timeout: time.Second})
				_, err := db.Look(t.Context())
				if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), addr) {
					t.Errorf("%v", err)
				}
				if what == "refused" && !strings.Contains(err.Error(), "connection refused") {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

const ruok = `{"1": {"connections": 2, "lock_time": 1000.5, "waiting": 3, "active_txns": 1, "start": "x"}, "2": {"lock_time": null, "waiting": 0}}`

func TestZEO(t *testing.T) {
	t.Parallel()
	frame := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	addr := listen(t, func(c net.Conn) {
		_, _ = c.Write(frame("Z5"))
		got := make([]byte, 8)
		if _, err := io.ReadFull(c, got); err == nil && string(got) == "\x00\x00\x00\x04ruok" {
			_, _ = c.Write(frame(ruok))
		}
	})
	v, err := open(t, "zeo://"+addr, Options{}).Look(t.Context())
	if err != nil || len(v.Sessions) != 2 || len(v.Notes) != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	if s := v.Sessions[0]; s.ID != "1" || !s.InTransaction || s.Blocked != 3 || s.Locks[0] != "commit lock" || s.Peer.Port() != 0 {
		t.Errorf("%+v", s)
	}
	if s := v.Sessions[1]; s.InTransaction || s.Blocked != 0 {
		t.Errorf("%+v", s)
	}
	db := open(t, "zeo://"+addr+"/2", Options{})
	if v, err = db.Look(t.Context()); err != nil || len(v.Sessions) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	if err := db.End(t.Context(), &v.Sessions[0], func() error { return nil }); !errors.Is(err, ErrNoEnd) || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if _, err := open(t, "zeo://"+addr+"/nosuch", Options{}).Look(t.Context()); err == nil || !strings.Contains(err.Error(), `no storage "nosuch"`) {
		t.Errorf("%v", err)
	}
}

func FuzzZEO(f *testing.F) {
	f.Add([]byte(ruok))
	f.Add([]byte(`{"\u001b[2J": {"lock_time": -1e300, "waiting": 9223372036854775807}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseZEO(b, time.Unix(2000, 0))
		if err != nil {
			return
		}
		for _, s := range list {
			if s.Transaction < 0 || s.Blocked < 0 || s.Blocked > maxSessions || strings.ContainsRune(s.ID, 0x1b) {
				t.Errorf("%+v", s)
			}
		}
	})
}

func FuzzStringList(f *testing.F) {
	f.Add(`["a","b"]`)
	f.Fuzz(func(t *testing.T, s string) {
		if list := stringList(s); list != nil && !json.Valid([]byte(s)) {
			t.Errorf("%q: %q", s, list)
		}
	})
}

// stubborn is a database whose driver knows of no deadline.
type stubborn struct{ release chan struct{} }

func (s stubborn) look(context.Context, *sql.Conn) (*View, error) {
	<-s.release
	return &View{}, nil
}

func (s stubborn) end(_ context.Context, _ *sql.Conn, _ *Session, last func() error) error {
	<-s.release
	return last()
}

func (stubborn) grant(error) string { return "" }

// A driver that does not end in time is not waited for; what it does later
// ends no session, and only then has the next call its turn.
func TestOverrun(t *testing.T) {
	t.Parallel()
	s := stubborn{make(chan struct{})}
	d := &DB{timeout: 50 * time.Millisecond, dialect: s, turn: make(chan struct{}, 1)}
	asked := make(chan struct{})
	err := d.End(t.Context(), &Session{}, func() error { close(asked); return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := d.Look(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beside the other: %v", err)
	}
	close(s.release)
	d.turn <- struct{}{} // it has ended
	<-d.turn
	select {
	case <-asked:
		t.Error("a session was about to be ended after the deadline")
	default:
	}
	if _, err := d.Look(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s = stubborn{make(chan struct{})}
	d = &DB{timeout: time.Hour, dialect: s, turn: make(chan struct{}, 1)}
	cancel()
	if _, err := d.Look(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	close(s.release)
}
