package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
	"deadpeer/internal/testnet"
)

// cgroup is the folder of the one that this process is in, "" when it could
// not be made.
var cgroup string

func TestMain(m *testing.M) { os.Exit(testnet.Main(inCgroup{m})) }

// inCgroup runs the tests in a cgroup of their own.
type inCgroup struct{ m *testing.M }

func (c inCgroup) Run() int {
	root, err := CgroupRoot()
	if err != nil || os.Getenv("DEADPEER_BPF_TEST") != "" { // a child needs none
		return c.m.Run()
	}
	dir := fmt.Sprintf("%s/deadpeer-test-%d", root, os.Getpid())
	if os.Mkdir(dir, 0o700) != nil {
		return c.m.Run()
	}
	home, err := moveTo(dir)
	if err == nil {
		cgroup = dir
	}
	code := c.m.Run()
	if err == nil {
		_, err = moveTo(root + home)
	}
	if err = errors.Join(err, os.Remove(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// moveTo takes this process to a cgroup and tells where it was.
func moveTo(dir string) (was string, err error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			was = strings.TrimSpace(path)
		}
	}
	return was, os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
}

func needCgroup(t *testing.T) string {
	t.Helper()
	needBPF(t)
	if cgroup == "" {
		skip(t, "no cgroup v2 could be made")
	}
	return cgroup
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// needBPF skips where the kernel does not let us load programs.
func needBPF(t *testing.T) {
	t.Helper()
	if err := Allowed(); err != nil {
		skip(t, err)
	}
}

func skip(t *testing.T, reason any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// mountBPFFS mounts a bpffs of the test's own.
func mountBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		skip(t, err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// pair is both ends of a connection.
type pair struct{ client, server *net.TCPConn }

type world struct {
	t            *testing.T
	server, peer *testnet.Host
	link         *testnet.Link
}

func newWorld(t *testing.T) *world {
	t.Helper()
	needBPF(t)
	w := &world{t: t}
	n := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, n.Close()) })
	w.server, w.peer = must(n.Host("server"))(t), must(n.Host("peer"))(t)
	w.link = must(n.Connect(w.server, w.peer))(t)
	return w
}

func (w *world) ns() *netns.NS { return w.server.NS() }

// connect opens n connections to the server, "tcp4" or "tcp6".
func (w *world) connect(network string, n int) (list []pair) {
	w.t.Helper()
	addr, everywhere := w.link.IPv4(w.server), "0.0.0.0:0"
	if network == "tcp6" {
		addr, everywhere = w.link.IPv6(w.server), "[::]:0"
	}
	l := must(w.server.Listen(w.t.Context(), network, everywhere))(w.t)
	defer func() { _ = l.Close() }()
	to := netip.AddrPortFrom(addr, l.Addr().(*net.TCPAddr).AddrPort().Port()).String()
	for range n {
		c := must(w.peer.Dial(w.t.Context(), network, to))(w.t)
		s := must(l.AcceptTCP())(w.t)
		w.t.Cleanup(func() { _, _ = c.Close(), s.Close() })
		list = append(list, pair{c, s})
	}
	return list
}

func control(t *testing.T, c syscall.Conn, f func(fd int)) {
	t.Helper()
	raw := must(c.SyscallConn())(t)
	ok(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

func cookieOf(t *testing.T, c syscall.Conn) (cookie uint64) {
	t.Helper()
	control(t, c, func(fd int) { cookie = must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))(t) })
	return cookie
}

func setOpt(t *testing.T, c syscall.Conn, level, name, value int) {
	t.Helper()
	control(t, c, func(fd int) { ok(t, unix.SetsockoptInt(fd, level, name, value)) })
}
