package keepalive_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/keepalive"
)

// control runs f on the descriptor of c.
func control(t *testing.T, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if inner != nil {
		t.Fatal(inner)
	}
}

// deafen makes c hear nothing: a socket filter drops every segment, so the
// other end's probes go unanswered (socket(7), SO_ATTACH_FILTER).
func deafen(t *testing.T, c *net.TCPConn) (hear func()) {
	t.Helper()
	dropAll := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	control(t, c, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: 1, Filter: &dropAll[0]})
	})
	return func() {
		control(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	}
}

func unansweredProbes(t *testing.T, c *net.TCPConn) (n uint8) {
	t.Helper()
	control(t, c, func(fd int) error {
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		n = binary.NativeEndian.AppendUint32(nil, uint32(v))[3]
		return err
	})
	return n
}

func waitForProbes(t *testing.T, c *net.TCPConn, n uint8) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); unansweredProbes(t, c) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d probes unanswered after 30 s, want %d", unansweredProbes(t, c), n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A tighter policy in the middle of probing does not end a connection whose
// peer is about to answer. Set in the plain order it would be gone a tick
// later: TCP_KEEPIDLE makes the timer fire, and the count is over.
func TestTighteningInMidProbingLeavesTimeToAnswer(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]keepalive.Policy{
		"probes":       {Idle: 2 * second, Interval: second, Probes: 1},
		"user timeout": {Idle: 2 * second, Interval: second, Probes: 1, UserTimeout: 2500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := pair(t, "tcp4")
			set(t, c, keepalive.Policy{Idle: second, Interval: second, Probes: 100})
			hear := deafen(t, s)
			waitForProbes(t, c, 3)
			set(t, c, p)
			time.Sleep(100 * time.Millisecond) // many ticks
			hear()
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatalf("the living peer's connection is gone: %v", err)
			}
			if got, want := get(t, c), (keepalive.Settings{KeepAlive: true, Policy: p}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// Setting the same policy again and again neither hurries nor postpones the
// death of a connection whose peer is gone.
func TestSettingAgainDoesNotPostpone(t *testing.T) {
	t.Parallel()
	start := time.Now() // before anything was heard
	c, s := pair(t, "tcp4")
	p := keepalive.Policy{Idle: 2 * second, Interval: second, Probes: 2}
	set(t, c, p)
	deafen(t, s)
	gone := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		gone <- err
	}()
	for {
		select {
		case err := <-gone:
			if took := time.Since(start); took < 4*second {
				t.Errorf("gone after %v, want 4 s at least", took)
			}
			if !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("got %v, want ETIMEDOUT", err)
			}
			return
		case <-time.After(100 * time.Millisecond):
			// A closed socket takes options, too.
			set(t, c, p)
		}
		if time.Since(start) > 60*time.Second {
			t.Fatal("still there after 60 s")
		}
	}
}

// A connection idle for longer than the new idle time is probed at once.
func TestIdleTimeAlreadyPassedCounts(t *testing.T) {
	t.Parallel()
	c, s := pair(t, "tcp4")
	deafen(t, s)
	time.Sleep(3100 * time.Millisecond)
	set(t, c, keepalive.Policy{Idle: 3 * second, Interval: 30 * second, Probes: 3})
	start := time.Now()
	waitForProbes(t, c, 1)
	if took := time.Since(start); took > 2900*time.Millisecond {
		t.Errorf("first probe after %v, want at once", took)
	}
}
