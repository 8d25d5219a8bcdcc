package redis_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	beat "deadpeer/heartbeat/redis"

	"github.com/redis/go-redis/v9"
)

// server is a Redis server of the test's own.
func server(t *testing.T) (address string, cmd *exec.Cmd) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	cmd = exec.Command(path, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--busy-reply-threshold", "50",
		"--user", "beat", "on", ">s3cret", "+ping", "--user", "quiet", "on", ">s3cret")
	cmd.Dir = t.TempDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			return address, cmd
		}
		if time.Now().After(end) {
			t.Fatal("redis-server does not listen")
		}
	}
}

func client(t *testing.T, opts redis.Options) *redis.Client {
	t.Helper()
	opts.ContextTimeoutEnabled, opts.MaxRetries = true, -1
	c := redis.NewClient(&opts)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Every idle connection of a pool is pinged; those that fail leave it, and the
// application finds the living.
func TestDeadConnectionsLeaveThePool(t *testing.T) {
	t.Parallel()
	address, cmd := server(t)
	c := client(t, redis.Options{Addr: address})
	target := beat.New(c)
	if err := target.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill(t, c, 5)
	if err := target.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.PoolStats().TotalConns; n != 5 {
		t.Errorf("%d connections after a ping, want the 5 of before", n)
	}
	// Of a stopped process the kernel still acknowledges: TCP sees nothing.
	stop(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := target.Ping(ctx); !isDeadline(err) {
		t.Errorf("a stopped server: %v, want the deadline", err)
	}
	if n := c.PoolStats().TotalConns; n != 0 {
		t.Errorf("%d dead connections are still in the pool", n)
	}
	resume(t, cmd)
	if err := errors.Join(target.Reconnect(t.Context()), target.Ping(t.Context()), c.Ping(t.Context()).Err()); err != nil {
		t.Error(err)
	}
}

// A connection that breaks under a ping is told by that ping, though the client
// would send it again over another, and has one by the next.
func TestBrokenConnectionIsTold(t *testing.T) {
	t.Parallel()
	address, _ := server(t)
	through, breakAll := forward(t, address)
	c := redis.NewClient(&redis.Options{Addr: through, ContextTimeoutEnabled: true}) // with go-redis's retries
	t.Cleanup(func() { _ = c.Close() })
	target := beat.New(c)
	for _, n := range []int{1, 3} {
		fill(t, c, n)
		breakAll()
		if err := target.Ping(t.Context()); err == nil {
			t.Errorf("%d connections broke, and none is told", n)
		}
		if err := target.Ping(t.Context()); err != nil {
			t.Errorf("the ping after that: %v", err)
		}
	}
}

// forward passes bytes on to address, until breakAll: connections of before
// then end with the next byte of the client.
func forward(t *testing.T, address string) (through string, breakAll func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var age atomic.Int64
	var conns sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				_ = client.Close()
				return
			}
			born := age.Load()
			conns.Go(func() {
				_, _ = io.Copy(client, server)
				_ = client.Close()
			})
			conns.Go(func() {
				b := make([]byte, 4096)
				for {
					n, err := client.Read(b)
					if err != nil || age.Load() > born {
						break
					}
					if _, err := server.Write(b[:n]); err != nil {
						break
					}
				}
				_, _ = client.Close(), server.Close()
			})
		}
	})
	return l.Addr().String(), func() { age.Add(1) }
}

// fill has a client open n connections and keep them idle.
func fill(t *testing.T, c *redis.Client, n int) {
	t.Helper()
	var held []*redis.Conn
	for range n {
		held = append(held, c.Conn())
		if err := held[len(held)-1].Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range held {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if idle := c.PoolStats().IdleConns; int(idle) != n {
		t.Fatalf("%d idle connections, want %d", idle, n)
	}
}

func isDeadline(err error) bool {
	timeout := net.Error(nil)
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

func TestLogin(t *testing.T) {
	t.Parallel()
	address, _ := server(t)
	for _, test := range []struct{ user, password, want string }{
		{"", "", ""},
		{"beat", "s3cret", ""},
		{"beat", "wr0ng", "WRONGPASS"},
		{"quiet", "s3cret", "NOPERM"},
	} {
		err := beat.New(client(t, redis.Options{Addr: address, Username: test.user, Password: test.password})).Ping(t.Context())
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("user %q: %v, want %q", test.user, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), test.password) {
			t.Errorf("password in %q", err)
		}
	}
}

func stop(t *testing.T, cmd *exec.Cmd)   { send(t, cmd, syscall.SIGSTOP) }
func resume(t *testing.T, cmd *exec.Cmd) { send(t, cmd, syscall.SIGCONT) }

func send(t *testing.T, cmd *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}
