package websocket_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"deadpeer/heartbeat/websocket"

	coder "github.com/coder/websocket"
)

// quiet accepts a connection and says nothing but pongs until it ends.
func quiet(w http.ResponseWriter, r *http.Request) {
	if conn, err := coder.Accept(w, r, nil); err == nil {
		<-conn.CloseRead(context.Background()).Done()
		_ = conn.CloseNow()
	}
}

func dial(t *testing.T, url string, opts websocket.Options) (*websocket.Target, error) {
	t.Helper()
	target, err := websocket.New(url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	if err := target.Ping(t.Context()); !errors.Is(err, websocket.ErrNotConnected) {
		t.Errorf("before connecting: %v", err)
	}
	return target, target.Reconnect(t.Context())
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.Replace(s.URL, "http", "ws", 1)
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/elsewhere":
			http.Redirect(w, r, "/", http.StatusFound)
		case user != "u" || password != "s3cret":
			w.WriteHeader(http.StatusUnauthorized)
		case r.Host != "feed.example.org" || r.Header.Get("X-Beat") != "1" || r.Header.Get("Sec-WebSocket-Protocol") != "beat":
			t.Errorf("got %s, %v", r.Host, r.Header)
		default:
			quiet(w, r)
		}
	})
	for _, test := range []struct{ user, path, want string }{
		{"u:s3cret@", "/", ""},
		{"u:wrong@", "/", "401"},
		{"u:s3cret@", "/elsewhere", "302"},
	} {
		url := strings.Replace(url, "://", "://"+test.user, 1) + test.path
		c, err := dial(t, url, websocket.Options{Header: http.Header{"X-Beat": {"1"}, "Host": {"feed.example.org"}}, Subprotocols: []string{"beat"}})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Fatalf("%s%s: %v", test.user, test.path, err)
		}
		if err != nil {
			if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "wrong") {
				t.Errorf("password in %q", err)
			}
			continue
		}
		for range 3 {
			if err := c.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if c.Heard() >= 0 {
			t.Errorf("heard something %v ago from a server that says nothing", c.Heard())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Messages of any size are dropped and count as signs of life; a closing
// handshake of the server's is told.
func TestTalkativeServer(t *testing.T) {
	t.Parallel()
	said, leave := make(chan struct{}), make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		conn, err := coder.Accept(w, r, nil)
		if err != nil {
			return
		}
		reading := conn.CloseRead(r.Context())
		if err := conn.Write(reading, coder.MessageBinary, make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		if err := conn.Ping(reading); err != nil {
			t.Error(err)
		}
		close(said)
		<-leave
		_ = conn.Close(coder.StatusGoingAway, "")
	})
	c, err := dial(t, url, websocket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	<-said
	if ago := c.Heard(); ago < 0 || ago > 20*time.Second {
		t.Errorf("heard %v ago", ago)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	close(leave)
	for err = nil; err == nil; time.Sleep(10 * time.Millisecond) {
		err = c.Ping(t.Context())
	}
	if !strings.Contains(err.Error(), "status 1001") {
		t.Errorf("got %v", err)
	}
}

// A server that hangs costs a deadline, and a late pong is for nobody.
func TestHungServer(t *testing.T) {
	t.Parallel()
	read := make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if conn, err := coder.Accept(w, r, nil); err == nil {
			<-read
			<-conn.CloseRead(context.Background()).Done()
			_ = conn.CloseNow()
		}
	})
	c, err := dial(t, url, websocket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	close(read)
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.HandlerFunc(quiet))
	t.Cleanup(s.Close)
	url := strings.Replace(s.URL, "https", "wss", 1)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	target, err := dial(t, url, websocket.Options{TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		t.Fatal(err)
	}
	if err := target.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := dial(t, url, websocket.Options{}); err == nil {
		t.Error("a certificate nobody vouches for was taken")
	}
}

// A server that went away fails pings until it is back and reconnected to.
func TestServerGoesAndComesBack(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "ws://" + l.Addr().String()
	var open atomic.Int64
	serve := func(l net.Listener) *http.Server {
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			open.Add(1)
			quiet(w, r)
			open.Add(-1)
		}), ReadHeaderTimeout: time.Minute}
		go func() { _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := serve(l)
	target, err := dial(t, url, websocket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), target.Reconnect(t.Context())); err == nil {
		t.Fatal("reconnected to nobody")
	}
	if err := target.Ping(t.Context()); !errors.Is(err, websocket.ErrNotConnected) {
		t.Errorf("got %v", err)
	}
	if l, err = net.Listen("tcp", strings.TrimPrefix(url, "ws://")); err != nil {
		t.Fatal(err)
	}
	serve(l)
	for range 3 { // closes the one before
		if err := target.Reconnect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	wait := func(n int64) {
		for end := time.Now().Add(20 * time.Second); open.Load() != n; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections are open, want %d", open.Load(), n)
			}
		}
	}
	wait(1)
	if err := errors.Join(target.Close(), target.Close()); err != nil {
		t.Error(err)
	}
	wait(0)
	if err := target.Reconnect(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reconnected after the close: %v", err)
	}
}

func TestBadURLs(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "10.0.0.9:80", "http://secret@host", "wss://", "ws://u:secret/x@host:1", "ws://u:secret%zz@host", "ws://host:secret"} {
		if _, err := websocket.New(url, websocket.Options{}); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "want one like") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
