package keepalive_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/keepalive"
)

const second = time.Second

// pair gives both ends of a connection that package net left alone.
func pair(t *testing.T, network string) (client, server *net.TCPConn) {
	t.Helper()
	lc := net.ListenConfig{KeepAlive: -1}
	return pairWith(t, network, net.Dialer{KeepAlive: -1}, lc)
}

func pairWith(t *testing.T, network string, d net.Dialer, lc net.ListenConfig) (client, server *net.TCPConn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "tcp6" {
		address = "[::1]:0"
	}
	l, err := lc.Listen(context.Background(), network, address)
	if err != nil {
		if network == "tcp6" && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
			t.Skip("this host has no IPv6 loopback")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c, err := d.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func get(t *testing.T, c syscall.Conn) keepalive.Settings {
	t.Helper()
	s, err := keepalive.Get(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func set(t *testing.T, c syscall.Conn, p keepalive.Policy) {
	t.Helper()
	if err := keepalive.Set(c, p); err != nil {
		t.Fatal(err)
	}
}

func TestSetThenGet(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			c, _ := pair(t, network)
			host := get(t, c)
			if host.KeepAlive {
				t.Fatal("keepalive is on before it was set")
			}
			for _, step := range []struct{ set, want keepalive.Policy }{
				{keepalive.Policy{}, host.Policy},
				{
					keepalive.Policy{Idle: 60*second + 1, Interval: 10*second - 1, Probes: 6, UserTimeout: 120*second + 1},
					keepalive.Policy{Idle: 61 * second, Interval: 10 * second, Probes: 6, UserTimeout: 120001 * time.Millisecond},
				},
				{
					keepalive.Policy{Probes: 5, UserTimeout: -1},
					keepalive.Policy{Idle: 61 * second, Interval: 10 * second, Probes: 5, UserTimeout: 120001 * time.Millisecond},
				},
				{
					keepalive.Policy{Idle: 1},
					keepalive.Policy{Idle: second, Interval: 10 * second, Probes: 5},
				},
				{
					keepalive.Policy{Idle: 32767 * second, Interval: 32767 * second, Probes: 127},
					keepalive.Policy{Idle: 32767 * second, Interval: 32767 * second, Probes: 127},
				},
			} {
				set(t, c, step.set)
				if got, want := get(t, c), (keepalive.Settings{KeepAlive: true, Policy: step.want}); got != want {
					t.Errorf("after Set(%+v)\n got %+v\nwant %+v", step.set, got, want)
				}
			}
			before := get(t, c)
			if err := keepalive.Disable(c); err != nil {
				t.Fatal(err)
			}
			before.KeepAlive = false
			if got := get(t, c); got != before {
				t.Errorf("after Disable\n got %+v\nwant %+v", got, before)
			}
		})
	}
}

// The kernel's own limits are the ones Validate knows.
func TestKernelLimits(t *testing.T) {
	c, _ := pair(t, "tcp4")
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		option, value int
		want          error
	}{
		{unix.TCP_KEEPIDLE, 32767, nil},
		{unix.TCP_KEEPIDLE, 32768, unix.EINVAL},
		{unix.TCP_KEEPINTVL, 32768, unix.EINVAL},
		{unix.TCP_KEEPCNT, 127, nil},
		{unix.TCP_KEEPCNT, 128, unix.EINVAL},
		{unix.TCP_USER_TIMEOUT, 1<<31 - 1, nil},
		{unix.TCP_USER_TIMEOUT, -1, unix.EINVAL},
	} {
		var got error
		if err := raw.Control(func(fd uintptr) {
			got = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, tt.option, tt.value)
		}); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(got, tt.want) {
			t.Errorf("option %d to %d: got %v, want %v", tt.option, tt.value, got, tt.want)
		}
	}
}

func TestSetRefusesFatalUserTimeout(t *testing.T) {
	c, _ := pair(t, "tcp4")
	set(t, c, keepalive.Policy{Idle: 60 * second, Interval: 10 * second, Probes: 6})
	before := get(t, c)
	var bad *keepalive.PolicyError
	if err := keepalive.Set(c, keepalive.Policy{UserTimeout: 30 * second}); !errors.As(err, &bad) || bad.Field != "user timeout" {
		t.Errorf("user timeout under the socket's idle time: got %v, want a PolicyError", err)
	}
	if got := get(t, c); got != before {
		t.Errorf("a refused policy changed %+v to %+v", before, got)
	}
	set(t, c, keepalive.Policy{UserTimeout: 120 * second})
	if err := keepalive.Set(c, keepalive.Policy{Idle: 600 * second, UserTimeout: -1}); !errors.As(err, &bad) {
		t.Errorf("idle time over the socket's user timeout: got %v, want a PolicyError", err)
	}
}

func TestControl(t *testing.T) {
	dial := keepalive.Policy{Idle: 40 * second, Interval: 4 * second, Probes: 4, UserTimeout: 60 * second}
	accept := keepalive.Policy{Idle: 50 * second, Interval: 5 * second, Probes: 5}
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			lc := net.ListenConfig{Control: accept.Control, KeepAlive: -1}
			c, s := pairWith(t, network, net.Dialer{Control: dial.Control, KeepAlive: -1}, lc)
			if got, want := get(t, c), (keepalive.Settings{KeepAlive: true, Policy: dial}); got != want {
				t.Errorf("dialled\n got %+v\nwant %+v", got, want)
			}
			if got, want := get(t, s), (keepalive.Settings{KeepAlive: true, Policy: accept}); got != want {
				t.Errorf("accepted\n got %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestControlLeavesOtherNetworksAlone(t *testing.T) {
	bad := keepalive.Policy{Probes: -1} // any TCP socket would refuse it
	lc := net.ListenConfig{Control: bad.Control}
	u, err := lc.ListenPacket(context.Background(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = u.Close()
	l, err := lc.Listen(context.Background(), "unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	var refused *keepalive.PolicyError
	if _, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0"); !errors.As(err, &refused) {
		t.Errorf("tcp: got %v, want a PolicyError", err)
	}
}

func TestErrors(t *testing.T) {
	p := keepalive.Policy{Idle: second, Interval: second, Probes: 1}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := keepalive.Set(u, p); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "TCP_USER_TIMEOUT") {
		t.Errorf("set on UDP: got %v, want the option named and ErrUnsupported", err)
	}
	if _, err := keepalive.Get(u); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("get on UDP: got %v, want ErrUnsupported", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := keepalive.SetFD(r.Fd(), p); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("set on a pipe: got %v, want ENOTSOCK", err)
	}
	if err := keepalive.DisableFD(r.Fd()); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("disable on a pipe: got %v, want ENOTSOCK", err)
	}
	c, _ := pair(t, "tcp4")
	_ = c.Close()
	if err := keepalive.Set(c, p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("set on a closed connection: got %v, want net.ErrClosed", err)
	}
}

// An MPTCP socket either holds what it was told or says that it cannot.
func TestMPTCP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("no MPTCP here: %v", err)
	}
	defer unix.Close(fd)
	p := keepalive.Policy{Idle: 50 * second, Interval: 5 * second, Probes: 5}
	if err := keepalive.SetFD(uintptr(fd), p); err != nil {
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "MPTCP") {
			t.Fatalf("got %v, want MPTCP named and ErrUnsupported", err)
		}
		return
	}
	s, err := keepalive.GetFD(uintptr(fd))
	if err != nil {
		t.Fatal(err)
	}
	s.UserTimeout = 0 // may be unknown
	if want := (keepalive.Settings{KeepAlive: true, Policy: p}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	p.UserTimeout = 100 * second
	if err := keepalive.SetFD(uintptr(fd), p); err != nil && (!errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "MPTCP")) {
		t.Errorf("user timeout: got %v, want MPTCP named and ErrUnsupported", err)
	}
}

func TestGetFDDoesNotAllocate(t *testing.T) {
	c, _ := pair(t, "tcp4")
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := keepalive.GetFD(fd); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("GetFD allocates %v times", n)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
