package keepalive_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/keepalive"
)

func costly() keepalive.Policy {
	return keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 6, UserTimeout: 130 * time.Second}
}

func TestSetAllocates(t *testing.T) {
	c, _ := pair(t, "tcp4")
	raw, err := c.SyscallConn()
	ok(t, err)
	ok(t, raw.Control(func(fd uintptr) {
		for name, f := range map[string]func() error{
			"SetFD":           func() error { return keepalive.SetFD(fd, costly()) },
			"SetBestEffortFD": func() error { _, err := keepalive.SetBestEffortFD(fd, costly()); return err },
		} {
			if n := testing.AllocsPerRun(100, func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			}); n != 0 {
				t.Errorf("%s allocates %v times", name, n)
			}
		}
	}))
	if n := testing.AllocsPerRun(100, func() {
		if err := keepalive.Set(c, costly()); err != nil {
			t.Error(err)
		}
	}); n > 3 {
		t.Errorf("Set allocates %v times, want 3 at most", n)
	}
}

// One setsockopt an option, one look at the probes that went unanswered, and
// nothing else that touches the socket.
func TestSetCalls(t *testing.T) {
	const mark, turns = "DEADPEER_COUNT_CALLS", 500
	if os.Getenv(mark) != "" {
		c, _ := pair(t, "tcp4")
		for range turns {
			ok(t, keepalive.Set(c, costly()))
		}
		return
	}
	t.Parallel()
	strace, err := exec.LookPath("strace")
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal("strace is missing")
	default:
		t.Skip("strace is missing")
	}
	table := filepath.Join(t.TempDir(), "calls")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-c", "-U", "calls,name", "-e", "trace=%desc,%network", "-o", table,
		os.Args[0], "-test.run=^TestSetCalls$")
	cmd.Env = append(os.Environ(), mark+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	counted, err := os.ReadFile(table)
	ok(t, err)
	want := map[string]int{"setsockopt": 5, "getsockopt": 1}
	for line := range strings.Lines(string(counted)) {
		var calls int
		var name string
		if n, _ := fmt.Sscan(line, &calls, &name); n != 2 || name == "total" || strings.HasPrefix(name, "???") { // which strace missed
			continue
		}
		// The rest of the division is what the test itself does.
		if calls/turns != want[name] {
			t.Errorf("%d times %s in %d turns, want %d a turn", calls, name, turns, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("no %v in\n%s", want, counted)
	}
}

func benchmarked(b *testing.B) *net.TCPConn {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	b.ReportAllocs()
	return c.(*net.TCPConn)
}

func BenchmarkSetFD(b *testing.B) {
	raw, err := benchmarked(b).SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		for b.Loop() {
			if err := keepalive.SetFD(fd, costly()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSet(b *testing.B) {
	c := benchmarked(b)
	for b.Loop() {
		if err := keepalive.Set(c, costly()); err != nil {
			b.Fatal(err)
		}
	}
}

// What package net needs for the same.
func BenchmarkNetSetKeepAliveConfig(b *testing.B) {
	c, p := benchmarked(b), costly()
	for b.Loop() {
		if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: p.Idle, Interval: p.Interval, Count: p.Probes}); err != nil {
			b.Fatal(err)
		}
		raw, err := c.SyscallConn()
		if err != nil {
			b.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(p.UserTimeout/time.Millisecond))
		}); err != nil {
			b.Fatal(err)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
