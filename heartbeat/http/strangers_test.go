package http_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	beat "deadpeer/heartbeat/http"
)

// says answers every request on every connection with the same bytes.
func says(t *testing.T, answer string, then func(net.Conn)) *beat.Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					if _, err := io.WriteString(conn, answer); err != nil {
						return
					}
					if then != nil {
						then(conn)
					}
				}
			})
		}
	})
	x, err := beat.New("http://"+l.Addr().String(), beat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(); _ = l.Close(); conns.Wait() })
	if err := x.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return x
}

// What comes before the answer (RFC 9110 section 15.2) is none.
func TestEarlyHints(t *testing.T) {
	t.Parallel()
	hint := "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
	x := says(t, hint+"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", nil)
	for range 3 {
		if status, ok := errors.AsType[*beat.StatusError](x.Ping(t.Context())); !ok || status.Code != http.StatusBadGateway {
			t.Fatalf("got %v, want the status 502", status)
		}
	}
	x = says(t, strings.Repeat(hint, 100_000), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := x.Ping(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("hints without end: %v", err)
	}
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"Redis":  "-ERR unknown command\r\n",
		"header": "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 4<<20),
		"closes": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := says(t, answer, func(c net.Conn) { _ = c.Close() })
			if err := x.Ping(t.Context()); err == nil {
				t.Error("taken for an answer")
			}
		})
	}
}
