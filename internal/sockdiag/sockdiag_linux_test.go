package sockdiag

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// pair is two hosts joined by a link, and n connections from b to a.
type pair struct {
	a, b    *testnet.Host
	link    *testnet.Link
	clients []*net.TCPConn
	servers []net.Conn
}

func newPair(t *testing.T, network string, n int) *pair {
	t.Helper()
	net, err := testnet.New(t.Context())
	check(t, err)
	t.Cleanup(func() { check(t, net.Close()) })
	p := &pair{}
	p.a, err = net.Host("a")
	check(t, err)
	p.b, err = net.Host("b")
	check(t, err)
	p.link, err = net.Connect(p.a, p.b)
	check(t, err)
	addr := p.link.IPv4(p.a)
	if network == "tcp6" {
		addr = p.link.IPv6(p.a)
	}
	l, err := p.a.Listen(t.Context(), network, netip.AddrPortFrom(addr, 0).String())
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	for range n {
		c, err := p.b.Dial(t.Context(), network, l.Addr().String())
		check(t, err)
		t.Cleanup(func() { _ = c.Close() })
		s, err := l.Accept()
		check(t, err)
		t.Cleanup(func() { _ = s.Close() })
		p.clients, p.servers = append(p.clients, c), append(p.servers, s)
	}
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, h *testnet.Host) *Conn {
	t.Helper()
	c, err := Open(h.NS())
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

func list(t *testing.T, c *Conn, q Query) []conn.Sock {
	t.Helper()
	var socks []conn.Sock
	check(t, c.Dump(t.Context(), q, func(s *conn.Sock, _ *Memory) error {
		socks = append(socks, *s)
		return nil
	}))
	return socks
}

func TestDump(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			p := newPair(t, network, 3)
			c := open(t, p.b)
			socks := list(t, c, Query{Memory: true})
			if len(socks) != 3 {
				t.Fatalf("%d sockets, want 3", len(socks))
			}
			seen := map[string]bool{}
			for _, s := range socks {
				seen[s.Local().String()+" "+s.Peer().String()] = true
				if s.State != conn.Established || !s.HasInfo || s.Cookie == 0 || s.Inode == 0 || s.NetNS != p.b.NS().Inode() {
					t.Errorf("socket %+v", s)
				}
			}
			for _, k := range p.clients {
				if !seen[k.LocalAddr().String()+" "+k.RemoteAddr().String()] {
					t.Errorf("%s missing", k.LocalAddr())
				}
			}
			listeners := list(t, open(t, p.a), Query{States: 1 << conn.Listen})
			if len(listeners) != 1 || listeners[0].State != conn.Listen {
				t.Errorf("listeners %+v", listeners)
			}
		})
	}
}

func TestLookupAndDestroy(t *testing.T) {
	p := newPair(t, "tcp4", 2)
	c := open(t, p.b)
	socks := list(t, c, Query{})
	stale := socks[0]
	stale.Cookie++
	foreign := socks[0]
	foreign.NetNS++
	every := socks[0]
	every.Cookie = noCookie
	ask := []*conn.Sock{&socks[0], &stale, &foreign, &every}
	for name, do := range map[string]func([]*conn.Sock, func(int, error)) error{"look up": c.Lookup, "destroy": c.Destroy} {
		outcomes := map[int]error{}
		check(t, do(ask[1:], func(i int, err error) { outcomes[i] = err }))
		if len(outcomes) != 3 || !errors.Is(outcomes[0], ErrGone) || outcomes[1] == nil || outcomes[2] == nil {
			t.Errorf("%s: outcomes %v", name, outcomes)
		}
	}
	if left := list(t, c, Query{}); len(left) != 2 {
		t.Fatalf("%d sockets left after destroying by wrong names, want 2", len(left))
	}
	before := socks[0].SegsIn
	_, err := p.serverOf(socks[0]).Write([]byte("x"))
	check(t, err)
	deadline := time.Now().Add(5 * time.Second)
	for socks[0].SegsIn == before && time.Now().Before(deadline) {
		check(t, c.Lookup(ask[:1], func(_ int, err error) { check(t, err) }))
	}
	if socks[0].SegsIn == before {
		t.Error("segments received did not rise")
	}
	check(t, c.Destroy(ask[:1], func(_ int, err error) { check(t, err) }))
	check(t, c.Lookup(ask[:1], func(_ int, err error) {
		if !errors.Is(err, ErrGone) {
			t.Errorf("after destroy: %v, want ErrGone", err)
		}
	}))
	if left := list(t, c, Query{}); len(left) != 1 || left[0].Cookie != socks[1].Cookie {
		t.Errorf("left %+v, want only the other", left)
	}
}

func (p *pair) serverOf(s conn.Sock) net.Conn {
	for _, c := range p.servers {
		if c.RemoteAddr().String() == s.Local().String() {
			return c
		}
	}
	return nil
}

func TestDestroyBatch(t *testing.T) {
	const n = 3*batchLen + 5
	p := newPair(t, "tcp6", n)
	c := open(t, p.b)
	socks := list(t, c, Query{})
	gone := socks[7]
	gone.Cookie += 1 << 40
	names := []*conn.Sock{&gone}
	for i := range socks {
		names = append(names, &socks[i])
	}
	outcomes := make([]int, len(names))
	check(t, c.Destroy(names, func(i int, err error) {
		outcomes[i]++
		if (i == 0) != errors.Is(err, ErrGone) || i > 0 && err != nil {
			t.Errorf("socket %d: %v", i, err)
		}
	}))
	for i, n := range outcomes {
		if n != 1 {
			t.Errorf("socket %d: %d outcomes", i, n)
		}
	}
	if left := list(t, c, Query{}); len(left) != 0 {
		t.Errorf("%d sockets left", len(left))
	}
}

// A visitor's error ends the dump, and the socket is good for another one.
func TestDumpEndsEarly(t *testing.T) {
	p := newPair(t, "tcp4", 4)
	c := open(t, p.b)
	stop := errors.New("enough")
	visits := 0
	err := c.Dump(t.Context(), Query{}, func(*conn.Sock, *Memory) error { visits++; return stop })
	if !errors.Is(err, stop) || visits != 1 {
		t.Errorf("error %v after %d visits", err, visits)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Dump(ctx, Query{}, func(*conn.Sock, *Memory) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled dump: %v", err)
	}
	if n := len(list(t, c, Query{})); n != 4 {
		t.Errorf("%d sockets afterwards, want 4", n)
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	few, many := newPair(t, "tcp4", 2), newPair(t, "tcp4", 202)
	allocs := func(p *pair) float64 {
		c := open(t, p.b)
		visit := func(*conn.Sock, *Memory) error { return nil }
		return testing.AllocsPerRun(5, func() { check(t, c.Dump(t.Context(), Query{Memory: true}, visit)) })
	}
	if a, b := allocs(few), allocs(many); b > a {
		t.Errorf("%v allocations for 202 sockets, %v for 2", b, a)
	}
}

// A dump longer than the buffers of its reader is visited whole and in order,
// and an error in the middle of it does not spoil the next.
func TestDumpLong(t *testing.T) {
	const n = 1200
	network, err := testnet.New(t.Context())
	check(t, err)
	t.Cleanup(func() { check(t, network.Close()) })
	host, err := network.Host("a")
	check(t, err)
	ports := map[uint16]bool{}
	for range n {
		l, err := host.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		check(t, err)
		t.Cleanup(func() { _ = l.Close() })
		ports[l.Addr().(*net.TCPAddr).AddrPort().Port()] = true
	}
	c := open(t, host)
	q := Query{States: 1 << conn.Listen}
	stop := errors.New("stop")
	for _, after := range []int{0, n / 2} {
		visited := 0
		err := c.Dump(t.Context(), q, func(*conn.Sock, *Memory) error {
			if visited++; visited > after {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) || visited != after+1 {
			t.Errorf("stopped after %d: visited %d, %v", after, visited, err)
		}
	}
	for _, s := range list(t, c, q) {
		if !ports[s.LocalPort] {
			t.Errorf("port %d is not ours, or came twice", s.LocalPort)
		}
		delete(ports, s.LocalPort)
	}
	if len(ports) > 0 {
		t.Errorf("%d of %d sockets are missing", len(ports), n)
	}
}

// Every socket was described between the moments that are said. A timer that
// counts down tells when the kernel looked.
func TestDescribed(t *testing.T) {
	t.Parallel()
	p := newPair(t, "tcp4", 1)
	check(t, p.servers[0].(*net.TCPConn).SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute}))
	c := open(t, p.a)
	var earliest, latest time.Time // when it is due
	for i := range 20 {
		began := time.Now()
		check(t, c.Dump(t.Context(), Query{}, func(s *conn.Sock, _ *Memory) error {
			since, until := c.Described()
			if since.Before(began) || until.Before(since) || until.After(time.Now()) {
				t.Errorf("between %v and %v after the dump began", since.Sub(began), until.Sub(began))
			}
			due := time.Duration(s.TimerMS) * time.Millisecond
			const tick = 10 * time.Millisecond // at HZ=100; the timer is told in whole ones
			from, to := since.Add(due-tick), until.Add(due+tick)
			if i == 0 {
				earliest, latest = from, to
			}
			if from.After(latest) || to.Before(earliest) {
				t.Errorf("due %v to %v after the first was", from.Sub(earliest), to.Sub(earliest))
			}
			return nil
		}))
		time.Sleep(7 * time.Millisecond)
	}
	if earliest.IsZero() {
		t.Error("no socket")
	}
}
