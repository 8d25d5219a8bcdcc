package engine

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// world is a server host with connections from two client hosts: near stays
// reachable, far can be cut off.
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
	servers map[netip.AddrPort]net.Conn     // by the client's address
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
	w := &world{t: t, dir: t.TempDir(), clients: map[netip.AddrPort]*net.TCPConn{}, servers: map[netip.AddrPort]net.Conn{}}
	ok(t, os.Chmod(w.dir, 0o700))
	w.net = must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, w.net.Close()) })
	w.server = must(w.net.Host("server"))(t)
	w.near = must(w.net.Host("near"))(t)
	w.far = must(w.net.Host("far"))(t)
	w.toNear = must(w.net.Connect(w.server, w.near))(t)
	w.toFar = must(w.net.Connect(w.server, w.far))(t)
	w.engine = New(Options{RuntimeDir: w.dir})
	return w
}

// connect opens n connections from a client host to the server.
func (w *world) connect(network string, client *testnet.Host, n int) {
	w.t.Helper()
	link := w.toNear
	if client == w.far {
		link = w.toFar
	}
	addr := link.IPv4(w.server)
	if network == "tcp6" {
		addr = link.IPv6(w.server)
	}
	l := must(w.server.Listen(w.t.Context(), network, netip.AddrPortFrom(addr, 0).String()))(w.t)
	defer func() { _ = l.Close() }()
	for range n {
		c := must(client.Dial(w.t.Context(), network, l.Addr().String()))(w.t)
		s := must(l.Accept())(w.t)
		_ = s.(*net.TCPConn).SetKeepAlive(false)
		w.t.Cleanup(func() { _, _ = c.Close(), s.Close() })
		from := c.LocalAddr().(*net.TCPAddr).AddrPort()
		w.clients[from], w.servers[from] = c, s
	}
}

// on runs f on a thread inside the server's namespace, as a user there would.
func (w *world) request() Request {
	return Request{Netns: w.nsPath()}
}

func (w *world) nsPath() string {
	return "/proc/self/fd/" + itoa(w.server.NS().Fd())
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func (w *world) check(ctx context.Context, r Request) map[netip.AddrPort]Connection {
	w.t.Helper()
	snap := must(w.engine.Check(ctx, r))(w.t)
	return byPeer(snap)
}

func byPeer(snap *Snapshot) map[netip.AddrPort]Connection {
	m := map[netip.AddrPort]Connection{}
	for c := range snap.All() {
		m[unmap(c.Sock.Peer())] = *c
	}
	return m
}

func (w *world) isFar(a netip.AddrPort) bool {
	return a.Addr() == w.toFar.IPv4(w.far) || a.Addr() == w.toFar.IPv6(w.far)
}

func TestCheckHalfCut(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.connect(network, w.near, 100)
			w.connect(network, w.far, 100)
			ok(t, w.toFar.Cut())
			start := time.Now()
			got := w.check(t.Context(), w.request())
			took := time.Since(start)
			if len(got) != 200 {
				t.Fatalf("%d connections, want 200", len(got))
			}
			for peer, c := range got {
				want := conn.Alive
				if w.isFar(peer) {
					want = conn.Dead
				}
				if c.Judgement.Verdict != want {
					t.Errorf("%s: %s (%s), want %s", peer, c.Judgement.Verdict, c.Reason(), want)
				}
			}
			t.Logf("took %s", took)
			if took > 6*time.Second {
				t.Errorf("took %s, want at most 6 s", took)
			}
		})
	}
}

var _ = verdict.Rules{}
