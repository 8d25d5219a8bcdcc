package http_test

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

	beat "deadpeer/heartbeat/http"
)

// site is a server that counts what is asked and who connects.
type site struct {
	*httptest.Server
	asked, connected atomic.Int64
}

func serve(t *testing.T, h2 bool) *site {
	t.Helper()
	s := &site{}
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
			w.WriteHeader(http.StatusForbidden) // an answer, too
		}
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	mux.HandleFunc("/closes", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })
	mux.HandleFunc("/hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s.Server = httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = h2
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.connected.Add(1)
		}
	}
	if h2 {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func target(t *testing.T, s *site, path string) *beat.Target {
	t.Helper()
	opts := beat.Options{}
	if s.Certificate() != nil {
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		opts.TLS = &tls.Config{RootCAs: roots}
	}
	x, err := beat.New(strings.Replace(s.URL, "://", "://u:p@", 1)+path, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Ping(t.Context()); !errors.Is(err, beat.ErrNotConnected) {
		t.Errorf("before connecting: %v", err)
	}
	if err := x.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func TestPing(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		s := serve(t, h2)
		good := target(t, s, "/good")
		for range 3 {
			if err := good.Ping(t.Context()); err != nil {
				t.Fatalf("HTTP/2 %v: %v", h2, err)
			}
		}
		if asked, connected := s.asked.Load(), s.connected.Load(); asked != 3 || connected != 1 {
			t.Errorf("HTTP/2 %v: asked %d times over %d connections, want 3 over 1", h2, asked, connected)
		}
		var status *beat.StatusError
		if err := target(t, s, "/bad").Ping(t.Context()); !errors.As(err, &status) || status.Code != 502 {
			t.Errorf("HTTP/2 %v: bad gateway is %v", h2, err)
		}
		closes := target(t, s, "/closes")
		for range 2 {
			if err := closes.Ping(t.Context()); err != nil {
				t.Errorf("HTTP/2 %v: a server that closes after its answer: %v", h2, err)
			}
		}
		hangs := target(t, s, "/hangs")
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if err := hangs.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("HTTP/2 %v: a server that hangs: %v", h2, err)
		}
		cancel()
		if err := hangs.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A server behind another address is asked by its own name.
func TestHostHeader(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		s := serve(t, h2)
		hosts := make(chan string, 2)
		s.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hosts <- r.Host })
		opts := beat.Options{Header: http.Header{}, TLS: &tls.Config{InsecureSkipVerify: true}}
		for _, host := range []string{"", "shop.example.org"} {
			if host != "" {
				opts.Header.Set("Host", host)
			}
			x, err := beat.New(s.URL+"/good", opts)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			if err := errors.Join(x.Reconnect(t.Context()), x.Ping(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{s.Listener.Addr().String(), "shop.example.org"} {
			if got := <-hosts; got != want {
				t.Errorf("HTTP/2 %v: asked as %q, want %q", h2, got, want)
			}
		}
	}
}

// A URL without a path costs an HTTP/2 server no request.
func TestPingFrame(t *testing.T) {
	t.Parallel()
	s := serve(t, true)
	var requests atomic.Int64
	inner := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Add(1); inner.ServeHTTP(w, r) })
	x := target(t, s, "")
	if err := x.Ping(t.Context()); err != nil || requests.Load() != 0 {
		t.Errorf("%v after %d requests", err, requests.Load())
	}
	s.CloseClientConnections()
	if err := x.Ping(t.Context()); err != nil || s.connected.Load() != 2 {
		t.Errorf("after the server closed the connection: %v, %d connections", err, s.connected.Load())
	}
	s.Close()
	if err := x.Ping(t.Context()); err == nil {
		t.Error("a closed server answered")
	}
}

func TestBadURLs(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"ftp://h", "http://", "http://u:hidden@[", "x", "http://u:hidden@h:port/"} {
		if _, err := beat.New(u, beat.Options{}); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", u, err)
		}
	}
}
