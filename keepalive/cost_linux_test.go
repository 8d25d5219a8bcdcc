package keepalive_test

import (
	"net"
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
