package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeVariable); mode != "" {
		os.Exit(runMode(mode))
	}
	os.Exit(Main(m))
}

const (
	silence = 300 * time.Millisecond // nothing crosses a cut link in that time
	patient = 10 * time.Second       // whatever is to come has come by then
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNet(t testing.TB) *Net {
	t.Helper()
	n := must(New(t.Context()))(t)
	t.Cleanup(func() { check(t, n.Close()) })
	return n
}

func pair(t testing.TB) (a, b *Host, l *Link) {
	t.Helper()
	n := newNet(t)
	a, b = must(n.Host("a"))(t), must(n.Host("b"))(t)
	return a, b, must(n.Connect(a, b))(t)
}

// families runs test once for each address of h on l.
func families(t *testing.T, test func(t *testing.T, address func(*Link, *Host) netip.Addr)) {
	t.Helper()
	t.Run("ipv4", func(t *testing.T) { test(t, (*Link).IPv4) })
	t.Run("ipv6", func(t *testing.T) { test(t, (*Link).IPv6) })
}

// stream is one established connection.
type stream struct {
	listener *net.TCPListener
	client   *net.TCPConn
	server   net.Conn
}

func connect(t *testing.T, from, to *Host, ip netip.Addr) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	s := &stream{listener: must(to.Listen(t.Context(), "tcp", netip.AddrPortFrom(ip, 0).String()))(t)}
	t.Cleanup(func() { _ = s.listener.Close() })
	check(t, s.listener.SetDeadline(time.Now().Add(patient)))
	s.client = must(from.Dial(ctx, "tcp", s.listener.Addr().String()))(t)
	t.Cleanup(func() { _ = s.client.Close() })
	s.server = must(s.listener.Accept())(t)
	t.Cleanup(func() { _ = s.server.Close() })
	return s
}

func port(t *testing.T, a net.Addr) uint16 {
	t.Helper()
	return must(netip.ParseAddrPort(a.String()))(t).Port()
}

// crosses writes at one end and reads it all at the other.
func crosses(t *testing.T, from, to net.Conn) {
	t.Helper()
	check(t, to.SetReadDeadline(time.Now().Add(patient)))
	must(from.Write([]byte("hello")))(t)
	got := make([]byte, 5)
	must(io.ReadFull(to, got))(t)
	if string(got) != "hello" {
		t.Fatalf("read %q", got)
	}
}

// silent reports whether to hears nothing at all, be it an error.
func silent(t *testing.T, to net.Conn) {
	t.Helper()
	check(t, to.SetReadDeadline(time.Now().Add(silence)))
	if n, err := to.Read(make([]byte, 64)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, error %v, want silence", n, err)
	}
}

func readError(t *testing.T, c net.Conn) error {
	t.Helper()
	check(t, c.SetReadDeadline(time.Now().Add(patient)))
	n, err := c.Read(make([]byte, 64))
	if err == nil {
		t.Fatalf("read %d bytes, want an error", n)
	}
	return err
}

func TestConnect(t *testing.T) {
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		s := connect(t, a, b, address(l, b))
		crosses(t, s.client, s.server)
		crosses(t, s.server, s.client)
		if got := must(netip.ParseAddrPort(s.server.RemoteAddr().String()))(t).Addr(); got != address(l, a) {
			t.Errorf("server sees %v, want %v", got, address(l, a))
		}
		for _, c := range []syscall.Conn{s.client, s.server.(*net.TCPConn)} {
			raw := must(c.SyscallConn())(t)
			check(t, raw.Control(func(fd uintptr) {
				if v := must(unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE))(t); v != 0 {
					t.Error("keepalive is on")
				}
				if v := must(unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL))(t); v != unix.IPPROTO_TCP {
					t.Errorf("protocol %d, want plain TCP", v)
				}
			}))
		}
	})
	t.Run("loopback", func(t *testing.T) {
		s := connect(t, a, a, netip.MustParseAddr("127.0.0.1"))
		crosses(t, s.client, s.server)
	})
}

func TestSecondLink(t *testing.T) {
	a, b, first := pair(t)
	second := must(a.net.Connect(a, b))(t)
	check(t, first.Cut())
	s := connect(t, a, b, second.IPv4(b))
	crosses(t, s.client, s.server)
	if name, index := second.Interface(a); name != "eth1" || index == 0 {
		t.Errorf("interface %q, index %d", name, index)
	}
}

func TestRefused(t *testing.T) {
	a, b, l := pair(t)
	other := newNet(t)
	stranger := must(other.Host("stranger"))(t)
	errs := map[string]error{
		"connect to itself":   must2(a.net.Connect(a, a)),
		"connect across nets": must2(a.net.Connect(a, stranger)),
		"cut from a stranger": l.CutOneWay(stranger),
		"stranger's route":    stranger.RouteVia(l),
		"stranger's link":     stranger.LinkDown(l),
		"loss below 0":        l.Lossy(-1, 0),
		"loss above 100":      l.Lossy(0, 100.1),
		"listen on a name":    must2(a.Listen(t.Context(), "tcp", "localhost:0")),
		"dial a name":         must2(a.Dial(t.Context(), "tcp", "localhost:1")),
		"dial by UDP":         must2(a.Dial(t.Context(), "udp", "127.0.0.1:1")),
		"nobody listens":      must2(a.Dial(t.Context(), "tcp", netip.AddrPortFrom(l.IPv4(b), 1).String())),
		"sysctl of the host":  a.SetSysctl("kernel.hostname", "x"),
		"sysctl by dots":      a.SetSysctl("net/../kernel/hostname", "x"),
		"sysctl unknown":      a.SetSysctl("net.ipv4.no_such", "1"),
		"sysctl bad value":    a.SetSysctl("net.ipv4.tcp_keepalive_time", "soon"),
	}
	for name, err := range errs {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if l.IPv4(stranger).IsValid() || l.IPv6(stranger).IsValid() {
		t.Error("stranger has an address on the link")
	}
}

func must2[T any](_ T, err error) error { return err }

func TestSysctl(t *testing.T) {
	a, b, _ := pair(t)
	check(t, a.SetSysctl("net.ipv4.tcp_keepalive_time", "5"))
	for h, want := range map[*Host]string{a: "5", b: "7200"} {
		check(t, h.Do(func() error {
			got, err := os.ReadFile("/proc/sys/net/ipv4/tcp_keepalive_time")
			if s := strings.TrimSpace(string(got)); s != want {
				t.Errorf("host %s: %q, want %q", h.Name(), s, want)
			}
			return err
		}))
	}
}

func TestStart(t *testing.T) {
	a, _, _ := pair(t)
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	check(t, a.Start(cmd))
	check(t, cmd.Wait())
	if want := fmt.Sprintf("net:[%d]\n", a.NS().Inode()); out.String() != want {
		t.Errorf("child is in %q, want %q", out.String(), want)
	}
}

// TestClose makes a busy net and looks for what it left in the process.
func TestClose(t *testing.T) {
	home := must(os.Readlink("/proc/self/ns/net"))(t)
	busy := func() {
		n := must(New(t.Context()))(t)
		a, b := must(n.Host("a"))(t), must(n.Host("b"))(t)
		l := must(n.Connect(a, b))(t)
		nat := must(n.NAT(a, b, NATOptions{}))(t)
		rec := must(l.Record())(t)
		must(nat.Outside.Record())(t) // closed by Close
		listener := must(b.Listen(t.Context(), "tcp", netip.AddrPortFrom(l.IPv6(b), 0).String()))(t)
		c := must(a.Dial(t.Context(), "tcp", listener.Addr().String()))(t)
		failure := errors.New("failure")
		for range 50 {
			if err := a.Do(func() error { return failure }); !errors.Is(err, failure) {
				t.Errorf("error %v", err)
			}
			func() {
				defer func() {
					if p := recover(); p == nil {
						t.Error("panic did not come through")
					}
				}()
				_ = b.Do(func() error { panic("in namespace") })
			}()
		}
		check(t, errors.Join(b.Reboot(), nat.Forget(), l.Cut(), c.Close(), listener.Close(), rec.Close(), n.Close(), n.Close()))
		for what, err := range map[string]error{
			"host": must2(n.Host("late")), "link": must2(n.Connect(a, b)), "cut": l.Cut(),
			"ports": l.CutPorts(1), "record": must2(l.Record()), "do": a.Do(func() error { return nil }),
		} {
			if err == nil {
				t.Errorf("%s after Close: no error", what)
			}
		}
	}
	busy() // whatever the libraries and the runtime keep for ever, they have now
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	for range 3 {
		busy()
	}
	settles(t, "descriptors", func() (string, bool) {
		now := descriptors(t)
		return fmt.Sprintf("%d, then %d: %v", len(fds), len(now), now), len(now) <= len(fds)
	})
	settles(t, "goroutines", func() (string, bool) {
		now := runtime.NumGoroutine()
		return fmt.Sprintf("%d, then %d", goroutines, now), now <= goroutines
	})
	settles(t, "threads", func() (string, bool) {
		tasks := must(filepath.Glob("/proc/self/task/*/ns/net"))(t)
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != home {
				return fmt.Sprintf("%s is in %s", task, ns), false
			}
		}
		return "", len(tasks) > 0
	})
}

func descriptors(t *testing.T) (list []string) {
	t.Helper()
	for _, link := range must(filepath.Glob("/proc/self/fd/*"))(t) {
		if to, err := os.Readlink(link); err == nil {
			list = append(list, to)
		}
	}
	return list
}

// settles waits for what the scheduler has yet to finish.
func settles(t *testing.T, what string, ok func() (string, bool)) {
	t.Helper()
	for deadline := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		state, done := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, state)
		}
	}
}
