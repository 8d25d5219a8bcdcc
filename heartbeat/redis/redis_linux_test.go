package redis_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
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
