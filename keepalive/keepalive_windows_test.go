package keepalive_test

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"deadpeer/keepalive"
)

func connected(t *testing.T) *net.TCPConn {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	d := net.Dialer{KeepAlive: -1}
	c, err := d.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// knows tells whether this Windows, or Wine, has the option.
func knows(t *testing.T, c *net.TCPConn, option int) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got error
	if err := raw.Control(func(fd uintptr) {
		_, got = windows.GetsockoptInt(windows.Handle(fd), windows.IPPROTO_TCP, option)
	}); err != nil {
		t.Fatal(err)
	}
	return got == nil
}

// Times by option, or by SIO_KEEPALIVE_VALS where there is none (Wine, and
// Windows before 10 1709).
func TestSetTimes(t *testing.T) {
	c := connected(t)
	p := keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, UserTimeout: -1}
	if err := keepalive.Set(c, p); err != nil {
		t.Fatal(err)
	}
	s, err := keepalive.Get(c)
	if !s.KeepAlive {
		t.Errorf("keepalive is off after Set: %+v", s)
	}
	if knows(t, c, windows.TCP_KEEPIDLE) && knows(t, c, windows.TCP_KEEPINTVL) {
		if s.Idle != p.Idle || s.Interval != p.Interval {
			t.Errorf("got %+v, %v, want %+v", s, err, p)
		}
	} else if !errors.Is(err, errors.ErrUnsupported) || s.Idle >= 0 || !strings.Contains(err.Error(), "idle: ") {
		t.Errorf("got %+v, %v, want the idle time not told", s, err)
	}
	if err := keepalive.Disable(c); err != nil {
		t.Fatal(err)
	}
	if off, _ := keepalive.Get(c); off.KeepAlive {
		t.Error("keepalive is on after Disable")
	}
	s.KeepAlive = true
	if err := keepalive.Restore(c, s); err != nil {
		t.Error(err)
	}
	if on, _ := keepalive.Get(c); !on.KeepAlive {
		t.Error("keepalive is off after Restore")
	}
}

// A whole policy: all of it, or an error that names what is missing, and with
// best effort the rest.
func TestSetWhole(t *testing.T) {
	c := connected(t)
	p, err := keepalive.Within(90 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	missing := map[keepalive.Part]bool{}
	if !knows(t, c, windows.TCP_KEEPCNT) {
		missing[keepalive.PartProbes] = true
	}
	if !knows(t, c, windows.TCP_MAXRTMS) && !knows(t, c, windows.TCP_MAXRT) {
		missing[keepalive.PartUserTimeout] = true
	}
	err = keepalive.Set(c, p)
	if (err == nil) != (len(missing) == 0) || err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("set: %v, missing is %v", err, missing)
	}
	for part := range missing {
		if !strings.Contains(err.Error(), string(part)+": ") {
			t.Errorf("%q does not name %s", err, part)
		}
	}
	if s, _ := keepalive.Get(c); s.KeepAlive != (err == nil) {
		t.Errorf("keepalive is %v after Set gave %v", s.KeepAlive, err)
	}
	undone, err := keepalive.SetBestEffort(c, p)
	if err != nil || len(undone) != len(missing) {
		t.Errorf("best effort: %v, %v, missing is %v", undone, err, missing)
	}
	for _, part := range undone {
		if !missing[part.Part] || !errors.Is(part, errors.ErrUnsupported) {
			t.Errorf("best effort: undone %v, missing is %v", part, missing)
		}
	}
	if s, _ := keepalive.Get(c); !s.KeepAlive {
		t.Error("keepalive is off")
	}
	// There is nothing to switch off where there is no user timeout.
	if err := keepalive.Set(c, keepalive.Policy{}); err != nil {
		t.Errorf("plain: %v", err)
	}
}

// SIO_KEEPALIVE_VALS sets both times or none.
func TestSetOneTime(t *testing.T) {
	c := connected(t)
	if knows(t, c, windows.TCP_KEEPIDLE) && knows(t, c, windows.TCP_KEEPINTVL) {
		if err := keepalive.Set(c, keepalive.Policy{Idle: time.Minute, UserTimeout: -1}); err != nil {
			t.Error(err)
		}
		return
	}
	for want, p := range map[keepalive.Part]keepalive.Policy{
		keepalive.PartInterval: {Idle: time.Minute, UserTimeout: -1},
		keepalive.PartIdle:     {Interval: time.Minute, UserTimeout: -1},
	} {
		err := keepalive.Set(c, p)
		if part, is := errors.AsType[*keepalive.PartError](err); !is || part.Part != want || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: got %v, want the %s unsupported", p, err, want)
		}
		if s, _ := keepalive.Get(c); s.KeepAlive {
			t.Fatalf("%+v: refused, but keepalive is on", p)
		}
	}
	undone, err := keepalive.SetBestEffort(c, keepalive.Policy{Idle: time.Minute, UserTimeout: -1})
	if err != nil || len(undone) != 1 || undone[0].Part != keepalive.PartInterval {
		t.Errorf("best effort: %v, %v, want the interval undone", undone, err)
	}
	if s, _ := keepalive.Get(c); !s.KeepAlive {
		t.Error("keepalive is off")
	}
}

// A dialer and a listener set it before there is a connection.
func TestControl(t *testing.T) {
	p := keepalive.Policy{Idle: time.Minute, Interval: 10 * time.Second, UserTimeout: -1}
	config := net.ListenConfig{Control: p.Control, KeepAlive: -1}
	l, err := config.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d := net.Dialer{Control: p.Control, KeepAlive: -1}
	c, err := d.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]syscall.Conn{"listener": l.(*net.TCPListener), "connection": c.(*net.TCPConn)} {
		if s, _ := keepalive.Get(c); !s.KeepAlive {
			t.Errorf("%s: keepalive is off", name)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := keepalive.Set(c.(*net.TCPConn), p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed connection: got %v", err)
	}
}

func TestValidateHere(t *testing.T) {
	for p, field := range map[keepalive.Policy]string{
		{Probes: 255}: "",
		{Probes: 256}: "probes",
		{Idle: 2147483 * time.Second, Interval: 2147483 * time.Second, Probes: 255}: "",
		{Idle: 2147484 * time.Second}:             "idle",
		{Interval: 2147484 * time.Second}:         "interval",
		{UserTimeout: 1 << 31 * time.Millisecond}: "user timeout",
	} {
		err := keepalive.Set(connected(t), p)
		refused, is := errors.AsType[*keepalive.PolicyError](err)
		if is != (field != "") || is && refused.Field != field {
			t.Errorf("%+v: got %v, want %q refused", p, err, field)
		}
	}
}

func TestNotTold(t *testing.T) {
	if _, err := keepalive.Heard(connected(t)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("heard: got %v, want ErrUnsupported", err)
	}
	// Not by package net, which asks UDP sockets for what Wine 8 lacks.
	u, err := windows.Socket(windows.AF_INET, windows.SOCK_DGRAM, windows.IPPROTO_UDP)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = windows.Closesocket(u) }()
	if err := keepalive.SetFD(uintptr(u), keepalive.Policy{Idle: time.Minute, Interval: time.Second}); err == nil {
		t.Error("set on UDP: no error")
	}
}
