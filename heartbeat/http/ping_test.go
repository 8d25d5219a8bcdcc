package http_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	beat "deadpeer/heartbeat/http"
)

// frames is a server of HTTP/2 that leaves it to a function what to say after
// the client's preface. It counts connections.
func frames(t *testing.T, serve func(net.Conn, *http2.Framer)) (*beat.Target, *atomic.Int64) {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	certificate, roots := borrowed.TLS.Certificates, x509.NewCertPool()
	roots.AddCert(borrowed.Certificate())
	borrowed.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certificate, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			made.Add(1)
			conns.Go(func() {
				defer c.Close()
				preface := make([]byte, len(http2.ClientPreface))
				if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
					t.Errorf("got the preface %q, %v", preface, err)
					return
				}
				serve(c, http2.NewFramer(c, c))
			})
		}
	})
	x, err := beat.New("https://"+l.Addr().String(), beat.Options{TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(); _ = l.Close(); conns.Wait() })
	if err := x.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return x, &made
}

// pong answers PINGs until the connection ends, and sees to it that its own
// settings and PING were acknowledged.
func pong(t *testing.T, c net.Conn, f *http2.Framer, settings, ping bool) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch f1 := frame.(type) {
		case *http2.SettingsFrame:
			settings = settings || f1.IsAck()
		case *http2.PingFrame:
			if f1.IsAck() {
				ping = ping || f1.Data == [8]byte{7}
				continue
			}
			if !settings || !ping {
				t.Errorf("pinged before our settings (%v) and PING (%v) were answered", settings, ping)
			}
			if err := f.WritePing(true, f1.Data); err != nil {
				return
			}
		default:
			t.Errorf("client sent %v", frame.Header())
			_ = c.Close()
		}
	}
}

func TestPINGAmongOtherFrames(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	x, made := frames(t, func(c net.Conn, f *http2.Framer) {
		err := errors.Join(f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1}), f.WriteWindowUpdate(0, 1<<20),
			f.WritePing(true, [8]byte{0: 255}), f.WritePing(false, [8]byte{7}), f.WriteRawFrame(0xbe, 0, 0, []byte("unknown")))
		if err != nil {
			t.Error(err)
		}
		settings, ping := false, false
		for !settings || !ping { // before anything is asked
			frame, err := f.ReadFrame()
			if err != nil {
				t.Error(err)
				break
			}
			switch f1 := frame.(type) {
			case *http2.SettingsFrame:
				settings = settings || f1.IsAck()
			case *http2.PingFrame:
				ping = f1.IsAck() && f1.Data == [8]byte{7}
			}
		}
		close(asked)
		pong(t, c, f, settings, ping)
	})
	<-asked
	for range 3 {
		if err := x.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if made.Load() != 1 {
		t.Errorf("%d connections, want one", made.Load())
	}
}

// A server that says that it will end the connection gets another one.
func TestGoAway(t *testing.T) {
	t.Parallel()
	var served atomic.Int64
	x, made := frames(t, func(c net.Conn, f *http2.Framer) {
		if served.Add(1) == 1 {
			_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
		}
		pong(t, c, f, true, true)
	})
	if err := x.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := made.Load(); n > 2 {
		t.Errorf("%d connections", n)
	}
}

func TestNoAnswerToPING(t *testing.T) {
	t.Parallel()
	x, made := frames(t, func(c net.Conn, _ *http2.Framer) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := x.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if made.Load() != 1 {
		t.Errorf("%d connections: a server that is silent was connected to again", made.Load())
	}
}

func TestBadFrames(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"too long":  "\xff\xff\xff\x06\x00\x00\x00\x00\x00" + strings.Repeat("x", 1<<16),
		"no frames": "HTTP/1.1 400 Bad Request\r\n\r\n",
		"bad PING":  "\x00\x00\x01\x06\x00\x00\x00\x00\x00x",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, _ := frames(t, func(c net.Conn, _ *http2.Framer) {
				_, _ = io.WriteString(c, text)
				_, _ = io.Copy(io.Discard, c)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := x.Ping(ctx); err == nil || ctx.Err() != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}
