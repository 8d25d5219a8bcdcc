package tcp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"deadpeer/heartbeat/tcp"
	"deadpeer/keepalive"
)

func pair(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestPing(t *testing.T) {
	t.Parallel()
	c, s := pair(t)
	before, err := keepalive.Get(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tcp.Ping(t.Context(), c); err != nil {
		t.Error(err)
	}
	if _, err := s.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if err := tcp.Ping(t.Context(), c); err != nil {
		t.Error(err)
	}
	if after, err := keepalive.Get(c); err != nil || after != before {
		t.Errorf("settings are %+v, %v; were %+v", after, err, before)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := tcp.Ping(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without time: %v", err)
	}
	if after, err := keepalive.Get(c); err != nil || after != before {
		t.Errorf("settings are %+v, %v; were %+v", after, err, before)
	}
}

func TestPeerClosed(t *testing.T) {
	t.Parallel()
	c, s := pair(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := tcp.Ping(t.Context(), c)
		if errors.Is(err, io.EOF) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, want EOF", err)
		}
	}
}
