package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
)

// world is a server host with connections from two client hosts: near stays
// reachable, far can be cut off. The server's sockets are asked.
type world struct {
	t       *testing.T
	net     *testnet.Net
	server  *testnet.Host
	near    *testnet.Host
	far     *testnet.Host
	toNear  *testnet.Link
	toFar   *testnet.Link
	engine  *Engine
	dir     string
	clients map[netip.AddrPort]*net.TCPConn // by their own address
	servers map[netip.AddrPort]*net.TCPConn // by the client's address
	// One listener a family, so that the clients' addresses are unique.
	listeners map[string]*net.TCPListener
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

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: runtimeDir(t), clients: map[netip.AddrPort]*net.TCPConn{}, servers: map[netip.AddrPort]*net.TCPConn{}, listeners: map[string]*net.TCPListener{}}
	w.net = must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, w.net.Close()) })
	w.server = must(w.net.Host("server"))(t)
	w.near = must(w.net.Host("near"))(t)
	w.far = must(w.net.Host("far"))(t)
	w.toNear = must(w.net.Connect(w.server, w.near))(t)
	w.toFar = must(w.net.Connect(w.server, w.far))(t)
	w.open(Options{ProcRoot: procRoot(t), HookDir: w.dir + "/none"})
	return w
}

// open gives the world another engine.
func (w *world) open(o Options) {
	o.RuntimeDir = w.dir
	w.engine = New(o)
	w.engine.cgroups = w.dir // nothing of others is cleaned up
}

func runtimeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ok(t, os.Chmod(dir, 0o700))
	return dir
}

// procRoot is a view of /proc with this process alone, and those of pids: a
// machine with many descriptors would keep all tests busy reading theirs.
func procRoot(t *testing.T, pids ...int) string {
	t.Helper()
	dir := t.TempDir()
	for _, pid := range append(pids, os.Getpid()) {
		name := strconv.Itoa(pid)
		ok(t, os.Symlink("/proc/"+name, dir+"/"+name))
	}
	return dir
}

// listener is the server's one for a family.
func (w *world) listener(network string) *net.TCPListener {
	w.t.Helper()
	l, found := w.listeners[network]
	if !found {
		everywhere := map[string]string{"tcp4": "0.0.0.0:0", "tcp6": "[::]:0"}[network]
		l = must(w.server.Listen(w.t.Context(), network, everywhere))(w.t)
		w.t.Cleanup(func() { _ = l.Close() })
		w.listeners[network] = l
	}
	return l
}

// connect opens n connections from a client host to the server. They are
// named by the client's addresses.
func (w *world) connect(network string, client *testnet.Host, n int) []netip.AddrPort {
	w.t.Helper()
	link := w.toNear
	if client == w.far {
		link = w.toFar
	}
	addr := link.IPv4(w.server)
	if network == "tcp6" {
		addr = link.IPv6(w.server)
	}
	l := w.listener(network)
	var peers []netip.AddrPort
	for range n {
		c, s := w.dial(client, addr, l)
		from := c.LocalAddr().(*net.TCPAddr).AddrPort()
		w.clients[from], w.servers[from] = c, s
		peers = append(peers, from)
	}
	return peers
}

// dial makes a connection from a host to a listener, by one of its addresses.
func (w *world) dial(from *testnet.Host, to netip.Addr, l *net.TCPListener) (client, server *net.TCPConn) {
	w.t.Helper()
	client = must(from.Dial(w.t.Context(), "tcp", reached(to, l).String()))(w.t)
	server = must(l.AcceptTCP())(w.t)
	w.t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

// reached is where a listener is reached by an address of its host.
func reached(addr netip.Addr, l net.Listener) netip.AddrPort {
	return netip.AddrPortFrom(addr, l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// request selects all sockets of the server.
func (w *world) request() Request { return Request{Netns: w.nsPath()} }

// nsPath names the server's namespace, to other processes too.
func (w *world) nsPath() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.server.NS().Fd())
}

// filtered is request with a filter.
func (w *world) filtered(words string) Request {
	r := w.request()
	r.Filter = filter(w.t, words)
	return r
}

func filter(t *testing.T, words string) *conn.Filter {
	t.Helper()
	return must(conn.ParseFilter(strings.Fields(words), conn.Resolver{}))(t)
}

func (w *world) check(ctx context.Context, r Request) map[netip.AddrPort]Connection {
	w.t.Helper()
	return byPeer(must(w.engine.Check(ctx, r))(w.t))
}

func byPeer(snap *Snapshot) map[netip.AddrPort]Connection {
	m := map[netip.AddrPort]Connection{}
	for c := range snap.All() {
		kept := *c
		kept.Owners = slices.Clone(c.Owners)
		if c.Outcome != nil {
			o := *c.Outcome
			kept.Outcome = &o
		}
		m[unmap(c.Sock.Peer())] = kept
	}
	return m
}

// expect holds the verdicts of some peers to one.
func expect(t *testing.T, got map[netip.AddrPort]Connection, peers []netip.AddrPort, want conn.Verdict, why ...verdict.Why) {
	t.Helper()
	wrong := 0
	for _, p := range peers {
		c, found := got[p]
		switch {
		case !found:
			t.Errorf("%s: not there", p)
		case c.Judgement.Verdict != want || len(why) > 0 && !slices.Contains(why, c.Judgement.Why):
			if wrong++; wrong <= 5 {
				t.Errorf("%s: %s (%s), want %s", p, c.Judgement.Verdict, c.Reason(), want)
			}
		}
	}
	if wrong > 5 {
		t.Errorf("… %d of %d wrong", wrong, len(peers))
	}
}

// wait polls until done, for what happens soon on an idle machine.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// control runs f on a connection's descriptor.
func control(t *testing.T, c syscall.Conn, f func(fd int)) {
	t.Helper()
	raw := must(c.SyscallConn())(t)
	ok(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

func setOpt(t *testing.T, c syscall.Conn, level, name, value int) {
	t.Helper()
	control(t, c, func(fd int) { ok(t, unix.SetsockoptInt(fd, level, name, value)) })
}

func cookieOf(t *testing.T, c syscall.Conn) (cookie uint64) {
	t.Helper()
	control(t, c, func(fd int) { cookie = must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))(t) })
	return cookie
}

// options are what asking must leave as it was.
type options struct {
	reuse, keepalive, idle, interval, probes, userTimeout int
}

func optionsOf(t *testing.T, c syscall.Conn) (o options) {
	t.Helper()
	control(t, c, func(fd int) {
		for _, opt := range []struct {
			to          *int
			level, name int
		}{
			{&o.reuse, unix.SOL_SOCKET, unix.SO_REUSEADDR},
			{&o.keepalive, unix.SOL_SOCKET, unix.SO_KEEPALIVE},
			{&o.idle, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
			{&o.interval, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
			{&o.probes, unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
			{&o.userTimeout, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
		} {
			*opt.to = must(unix.GetsockoptInt(fd, opt.level, opt.name))(t)
		}
	})
	return o
}

// serverOptions are the options of all the server's sockets.
func (w *world) serverOptions() map[netip.AddrPort]options {
	w.t.Helper()
	m := map[netip.AddrPort]options{}
	for p, s := range w.servers {
		m[p] = optionsOf(w.t, s)
	}
	return m
}

// unchanged compares options with those of before.
func (w *world) unchanged(before map[netip.AddrPort]options) {
	w.t.Helper()
	for p, o := range w.serverOptions() {
		if o != before[p] {
			w.t.Errorf("%s: options %+v, were %+v", p, o, before[p])
		}
	}
}

// diversify gives the server's sockets options of every kind.
func (w *world) diversify() {
	w.t.Helper()
	n := 0
	for _, p := range slices.SortedFunc(maps.Keys(w.servers), netip.AddrPort.Compare) {
		s := w.servers[p]
		setOpt(w.t, s, unix.SOL_SOCKET, unix.SO_KEEPALIVE, n&1)
		setOpt(w.t, s, unix.SOL_SOCKET, unix.SO_REUSEADDR, n>>1&1)
		if n>>2&1 == 1 {
			setOpt(w.t, s, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 100+n)
			setOpt(w.t, s, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10+n)
			setOpt(w.t, s, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5+n)
		}
		n++
	}
}

// nothingLeft makes sure that the runtime folder holds no journal and no
// attachment.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	list := must(os.ReadDir(dir))(t)
	if inner, err := os.ReadDir(dir + "/attach"); err == nil {
		list = append(list, inner...)
	}
	for _, e := range list {
		if e.Name() != "ask.lock" && e.Name() != "attach" {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// move takes a server's socket to another descriptor. Package net then sets
// keepalive options, which go back to what they were.
func (w *world) move(p netip.AddrPort, was options) {
	w.t.Helper()
	f := must(w.servers[p].File())(w.t)
	c := must(net.FileConn(f))(w.t)
	w.t.Cleanup(func() { _ = c.Close() })
	ok(w.t, errors.Join(w.servers[p].Close(), f.Close()))
	s := c.(*net.TCPConn)
	setOpt(w.t, s, unix.SOL_SOCKET, unix.SO_KEEPALIVE, was.keepalive)
	setOpt(w.t, s, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, was.idle)
	setOpt(w.t, s, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, was.interval)
	setOpt(w.t, s, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, was.probes)
	w.servers[p] = s
}
