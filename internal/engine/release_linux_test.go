package engine

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
)

// plan plans with a short silence, and closes the plan with the test.
func (w *world) plan(r Request) *Plan {
	w.t.Helper()
	if r.Rules.Silence == 0 {
		r.Rules.Silence = verdict.MinSilence
	}
	p := must(w.engine.Plan(w.t.Context(), r))(w.t)
	w.t.Cleanup(func() { ok(w.t, p.Close()) })
	return p
}

// aborted reports whether the server's socket was ended by us, once.
func (w *world) aborted(p netip.AddrPort) bool {
	w.t.Helper()
	var err error
	control(w.t, w.servers[p], func(fd int) {
		_, _, err = unix.Recvfrom(fd, make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK)
	})
	return errors.Is(err, unix.ECONNABORTED)
}

// expectOutcomes holds the outcomes of some peers to one: done, an error that
// contains a text, or none at all when the text is "-".
func expectOutcomes(t *testing.T, got map[netip.AddrPort]Connection, peers []netip.AddrPort, want string) {
	t.Helper()
	for _, p := range peers {
		o := got[p].Outcome
		switch {
		case want == "-" && o == nil, want == "done" && o != nil && o.Done && o.Error == "":
		case want != "-" && want != "done" && o != nil && !o.Done && strings.Contains(o.Error, want):
		default:
			t.Errorf("%s: outcome %+v, want %q", p, o, want)
		}
	}
}

func TestReleaseDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	near := append(w.connect("tcp4", w.near, 10), w.connect("tcp6", w.near, 10)...)
	far := append(w.connect("tcp4", w.far, 10), w.connect("tcp6", w.far, 10)...)
	ok(t, w.toFar.Cut())
	before := w.serverOptions()
	// The bystanders' data flows throughout.
	stop := make(chan struct{})
	var flows sync.WaitGroup
	for _, p := range near {
		flows.Go(func() { flow(t, w.clients[p], w.servers[p], stop) })
	}
	start := time.Now()
	p := w.plan(w.request())
	if took := time.Since(start); took < verdict.MinSilence {
		t.Errorf("planned after %s", took)
	}
	if p.Len() != len(far) || len(p.Held) != 0 {
		t.Errorf("%d planned, held %q", p.Len(), p.Held)
	}
	for _, peer := range far {
		if w.aborted(peer) {
			t.Errorf("%s: ended by the plan", peer)
		}
	}
	ok(t, p.Act(t.Context()))
	got := byPeer(p.Snapshot)
	expect(t, got, near, conn.Alive)
	expect(t, got, far, conn.Dead)
	expectOutcomes(t, got, near, "-")
	expectOutcomes(t, got, far, "done")
	for _, peer := range far {
		if e := got[peer].Evidence; e.Silence < verdict.MinSilence || !w.aborted(peer) {
			t.Errorf("%s: %+v", peer, e)
		}
	}
	close(stop)
	flows.Wait()
	for _, peer := range near {
		if o := optionsOf(t, w.servers[peer]); o != before[peer] {
			t.Errorf("%s: options %+v, were %+v", peer, o, before[peer])
		}
	}
	if err := p.Act(t.Context()); err != nil || p.Len() != 0 {
		t.Errorf("acted twice: %v, %d left", err, p.Len())
	}
}

// flow sends numbers one way until stop and sees that they all arrive.
func flow(t *testing.T, from, to *net.TCPConn, stop <-chan struct{}) {
	buf := make([]byte, 1)
	for n := byte(0); ; n++ {
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		_, writeErr := from.Write([]byte{n})
		_, readErr := io.ReadFull(to, buf)
		if writeErr != nil || readErr != nil || buf[0] != n {
			t.Errorf("%v: %v, %v, got %d, want %d", from.LocalAddr(), writeErr, readErr, buf[0], n)
			return
		}
	}
}

// When our own side is what is gone nothing is released, and the reason says
// why, unless it is told to go on.
func TestReleaseHeld(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		gone   func(w *world)
		reason string
		dead   bool // and can be released nevertheless
	}{
		{"no carrier", func(w *world) { ok(w.t, w.server.LinkDown(w.toFar)) }, "has no carrier", true},
		{"no route", func(w *world) {
			nl := w.netlink(w.server)
			name, _ := w.toFar.Interface(w.server)
			ok(w.t, nl.LinkSetDown(must(nl.LinkByName(name))(w.t)))
		}, "no route leads to the peers of 4 connections", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			near, far := w.connect("tcp4", w.near, 2), append(w.connect("tcp4", w.far, 2), w.connect("tcp6", w.far, 2)...)
			tt.gone(w)
			p := w.plan(w.request())
			if p.Len() != 0 || len(p.Held) == 0 || !strings.Contains(p.Held[0], tt.reason) {
				t.Errorf("%d planned, held %q", p.Len(), p.Held)
			}
			ok(t, p.Act(t.Context()))
			got := byPeer(p.Snapshot)
			expect(t, got, near, conn.Alive)
			for _, peer := range append(near, far...) {
				if w.aborted(peer) {
					t.Errorf("%s: ended", peer)
				}
			}
			r := w.request()
			r.DespiteOutage = true
			p = w.plan(r)
			ok(t, p.Act(t.Context()))
			got = byPeer(p.Snapshot)
			if tt.dead {
				expect(t, got, far, conn.Dead)
				expectOutcomes(t, got, far, "done")
			} else {
				expect(t, got, far, conn.Unknown)
				expectOutcomes(t, got, far, "-")
			}
		})
	}
}

// A gateway that does not answer ARP any more holds all that is behind it.
func TestReleaseHeldByGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	router := must(w.net.Router("router"))(t)
	beyond := must(w.net.Host("beyond"))(t)
	toRouter := must(w.net.Connect(w.server, router))(t)
	toBeyond := must(w.net.Connect(router, beyond))(t)
	ok(t, w.server.RouteVia(toRouter))
	ok(t, beyond.RouteVia(toBeyond))
	c, _ := w.dial(beyond, toRouter.IPv4(w.server), w.listener("tcp4"))
	peer := c.LocalAddr().(*net.TCPAddr).AddrPort()
	expect(t, w.check(t.Context(), w.request()), []netip.AddrPort{peer}, conn.Alive)
	ok(t, router.LinkDown(toRouter)) // our own interface keeps its carrier
	p := w.plan(w.request())
	expect(t, byPeer(p.Snapshot), []netip.AddrPort{peer}, conn.Dead)
	if p.Len() != 0 || len(p.Held) != 1 || !strings.Contains(p.Held[0], "does not answer ARP") {
		t.Errorf("%d planned, held %q", p.Len(), p.Held)
	}
	expectOutcomes(t, byPeer(p.Snapshot), []netip.AddrPort{peer}, "held: gateway")
}

// Answers need not come the way that questions go: the interface that has the
// connection's own address counts, too.
func TestReleaseHeldByWayBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out, back, beyond := must(w.net.Router("out"))(t), must(w.net.Router("back"))(t), must(w.net.Host("beyond"))(t)
	toOut, toBack := must(w.net.Connect(w.server, out))(t), must(w.net.Connect(w.server, back))(t)
	outToBeyond, backToBeyond := must(w.net.Connect(out, beyond))(t), must(w.net.Connect(back, beyond))(t)
	ok(t, w.server.RouteVia(toOut))
	ok(t, beyond.RouteVia(backToBeyond))
	subnet := must(backToBeyond.IPv4(beyond).Prefix(24))(t).Masked()
	ok(t, w.netlink(out).RouteAdd(&netlink.Route{
		Dst: &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}, Gw: outToBeyond.IPv4(beyond).AsSlice(),
	}))
	l := w.listener("tcp4")
	to := netip.AddrPortFrom(toBack.IPv4(w.server), l.Addr().(*net.TCPAddr).AddrPort().Port())
	c := must(beyond.Dial(t.Context(), "tcp4", to.String()))(t)
	s := must(l.AcceptTCP())(t)
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	peers := []netip.AddrPort{c.LocalAddr().(*net.TCPAddr).AddrPort()}
	expect(t, w.check(t.Context(), w.request()), peers, conn.Alive)
	ok(t, w.server.LinkDown(toBack))
	p := w.plan(w.request())
	expect(t, byPeer(p.Snapshot), peers, conn.Dead)
	if p.Len() != 0 || len(p.Held) != 1 || !strings.Contains(p.Held[0], "has no carrier") {
		t.Errorf("%d planned, held %q", p.Len(), p.Held)
	}
	// A flap of it spoils what went unanswered meanwhile.
	ok(t, w.server.LinkUp(toBack))
	expect(t, w.check(t.Context(), w.request()), peers, conn.Alive)
	ok(t, backToBeyond.Cut())
	got := w.during(w.request(), 2500*time.Millisecond, func() {
		ok(t, w.server.LinkDown(toBack))
		ok(t, w.server.LinkUp(toBack))
	})
	if e := got[peers[0]].Evidence; e.Questions < e.Unanswered+2 {
		t.Errorf("nothing was discarded: %+v", e)
	}
}

// A program that gives a dead peer up itself and connects the same socket to
// another keeps that.
func TestReleaseConnectedAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	listen := func(h *testnet.Host, l *testnet.Link) *unix.SockaddrInet4 {
		listener := must(h.Listen(t.Context(), "tcp4", "0.0.0.0:0"))(t)
		t.Cleanup(func() { _ = listener.Close() })
		return &unix.SockaddrInet4{Addr: l.IPv4(h).As4(), Port: listener.Addr().(*net.TCPAddr).Port}
	}
	far, near := listen(w.far, w.toFar), listen(w.near, w.toNear)
	var fd int
	ok(t, w.server.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return errors.Join(err, unix.Connect(fd, far))
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	segments := func() uint32 { return must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO))(t).Segs_in }
	before := segments()
	ok(t, w.toFar.Cut())
	p := w.plan(w.request())
	if p.Len() != 1 {
		t.Fatalf("%d planned", p.Len())
	}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unix.RawSockaddr{Family: unix.AF_UNSPEC})), unix.SizeofSockaddrInet4); errno != 0 {
		t.Fatal(errno)
	}
	ok(t, unix.Connect(fd, near))
	if now := segments(); now != before {
		t.Fatalf("%d segments, were %d", now, before)
	}
	ok(t, p.Act(t.Context()))
	if state := must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO))(t).State; state != uint8(conn.Established) {
		t.Errorf("the new connection is %s", conn.State(state))
	}
}

// Of twelve peers over one interface seven may be dead; when it is eight, our
// own side is suspected.
func TestReleaseHeldByShare(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nl := w.netlink(w.far)
	name, _ := w.toFar.Interface(w.far)
	ours, _ := w.toFar.Interface(w.server)
	dev := must(nl.LinkByName(name))(t)
	l := w.listener("tcp4")
	to := reached(w.toFar.IPv4(w.server), l).String()
	var peers []netip.AddrPort
	for n := range 12 {
		ip := "10.0.1." + strconv.Itoa(100+n)
		ok(t, nl.AddrAdd(dev, must(netlink.ParseAddr(ip+"/24"))(t)))
		dialer := net.Dialer{KeepAlive: -1, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		dialer.SetMultipathTCP(false)
		for range 2 {
			var c net.Conn
			ok(t, w.far.Do(func() (err error) {
				c, err = dialer.DialContext(t.Context(), "tcp4", to)
				return err
			}))
			s := must(l.AcceptTCP())(t)
			t.Cleanup(func() { _, _ = c.Close(), s.Close() })
			p := c.LocalAddr().(*net.TCPAddr).AddrPort()
			peers, w.servers[p] = append(peers, p), s
		}
	}
	// One connection of each peer is enough for it not to be dead.
	var halves []netip.AddrPort
	for n := 0; n < len(peers); n += 2 {
		halves = append(halves, peers[n])
	}
	ok(t, w.toFar.CutPorts(ports(halves)...))
	alive := slices.DeleteFunc(slices.Clone(peers), func(p netip.AddrPort) bool { return slices.Contains(halves, p) })
	if slices.ContainsFunc(alive, func(p netip.AddrPort) bool { return slices.Contains(ports(halves), p.Port()) }) {
		t.Skip("two peers have the same port, so that one cannot be cut alone")
	}
	p := w.plan(w.request())
	if p.Len() != 12 || len(p.Held) != 0 {
		t.Errorf("half of each peer: %d planned, held %q", p.Len(), p.Held)
	}
	ok(t, w.toFar.HealPorts())
	for dead, held := range map[int]bool{7: false, 8: true} {
		ok(t, w.toFar.CutPorts(ports(peers[:2*dead])...))
		p := w.plan(w.request())
		want := 2 * dead
		if held {
			want = 0
		}
		if p.Len() != want || held != (len(p.Held) == 1) {
			t.Errorf("%d of 12 dead: %d planned, held %q", dead, p.Len(), p.Held)
		}
		if held && !strings.Contains(p.Held[0], "8 of 12 peer addresses over "+ours+" are silent") {
			t.Errorf("held %q", p.Held)
		}
		ok(t, w.toFar.HealPorts())
	}
}

// A living connection is ended when its cookie is named and that is asked for.
func TestReleaseEvenAlive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	named := w.filtered(fmt.Sprintf("cookie = %d", cookieOf(t, w.servers[peers[0]])))
	if p := w.plan(named); p.Len() != 0 {
		t.Errorf("%d planned without being asked for", p.Len())
	}
	unnamed := w.request()
	unnamed.EvenAlive = true
	if p := w.plan(unnamed); p.Len() != 0 {
		t.Errorf("%d planned without being named", p.Len())
	}
	named.EvenAlive = true
	p := w.plan(named)
	ok(t, p.Act(t.Context()))
	got := byPeer(p.Snapshot)
	expect(t, got, peers[:1], conn.Alive)
	if expectOutcomes(t, got, peers[:1], "done"); len(got) != 1 {
		t.Errorf("%d connections", len(got))
	}
	for i, peer := range peers {
		if w.aborted(peer) != (i == 0) {
			t.Errorf("%s: ended: %v", peer, i != 0)
		}
	}
}

// What the filter does not select, verdict included, is not released.
func TestReleaseOnlySelected(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	living := w.connect("tcp4", w.near, 1)[0]
	dead := w.connect("tcp4", w.far, 2)
	ok(t, w.toFar.Cut())
	for filter, planned := range map[string]int{
		"verdict = suspect": 0,
		"verdict = alive":   0,
		fmt.Sprintf("verdict = dead and dport = %d", dead[0].Port()): 1,
	} {
		if p := w.plan(w.filtered(filter)); p.Len() != planned || len(p.Snapshot.outcomes) != planned {
			t.Errorf("%s: %d planned, %d outcomes, want %d", filter, p.Len(), len(p.Snapshot.outcomes), planned)
		}
	}
	named := w.filtered(fmt.Sprintf("cookie = %d and verdict = dead", cookieOf(t, w.servers[living])))
	named.EvenAlive = true
	if p := w.plan(named); p.Len() != 0 {
		t.Errorf("%d planned of a living connection that the filter does not select", p.Len())
	}
}

// What the kernel does not tell of a connection is no reason to select it.
func TestUntoldIsNotSelected(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peer := w.connect("tcp4", w.near, 1)[0]
	ok(t, w.servers[peer].Close())
	ok(t, w.clients[peer].Close())
	for filter, want := range map[string]int{"state time-wait": 1, "state time-wait and heard > 0s": 0, "state time-wait and not heard > 0s": 0} {
		got := -1
		for range 100 {
			if got = must(w.engine.Scan(t.Context(), w.filtered(filter)))(t).Len(); got == want {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if got != want {
			t.Errorf("%s: %d connections, want %d", filter, got, want)
		}
	}
}

// Between plan and act our own side changes, or too much time passes: what was
// found out counts no more.
func TestReleaseStale(t *testing.T) {
	t.Parallel()
	for want, age := range map[string]func(w *world, p *Plan){
		"the path to the peer has changed": func(w *world, p *Plan) {
			ok(w.t, w.server.LinkDown(w.toFar))
			ok(w.t, w.server.LinkUp(w.toFar))
			wait(w.t, "a notification", func() bool { return p.items[0].stale() != nil })
		},
		"last asked 60 s ago": func(_ *world, p *Plan) {
			for i := range p.items {
				p.items[i].last = time.Now().Add(-time.Minute)
			}
		},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			peers := w.connect("tcp4", w.far, 2)
			ok(t, w.toFar.CutPorts(ports(peers)...))
			p := w.plan(w.request())
			if p.Len() != len(peers) {
				t.Errorf("%d planned", p.Len())
			}
			age(w, p)
			ok(t, p.Act(t.Context()))
			expectOutcomes(t, byPeer(p.Snapshot), peers, want)
			for _, peer := range peers {
				if w.aborted(peer) {
					t.Errorf("%s: ended", peer)
				}
			}
		})
	}
}

// Between plan and act the dead connection makes way for a new one of the same
// addresses and ports, which lives on.
func TestReleaseTupleReused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.connect("tcp4", w.far, 3)
	ok(t, w.toFar.Cut())
	p := w.plan(w.request())
	if p.Len() != len(old) {
		t.Fatalf("%d planned", p.Len())
	}
	ok(t, w.toFar.CutPorts(old[2].Port()))
	ok(t, w.toFar.Heal())
	l := w.listener("tcp4")
	to := reached(w.toFar.IPv4(w.server), l).String()
	for _, peer := range old[:2] {
		ok(t, w.clients[peer].SetLinger(0))
		ok(t, w.servers[peer].SetLinger(0))
		ok(t, errors.Join(w.clients[peer].Close(), w.servers[peer].Close()))
		dialer := net.Dialer{KeepAlive: -1, LocalAddr: net.TCPAddrFromAddrPort(peer)}
		dialer.SetMultipathTCP(false)
		var c net.Conn
		wait(t, "connect from the same port", func() bool {
			return w.far.Do(func() (err error) {
				c, err = dialer.DialContext(t.Context(), "tcp4", to)
				return err
			}) == nil
		})
		s := must(l.AcceptTCP())(t)
		t.Cleanup(func() { _, _ = c.Close(), s.Close() })
		if from := s.RemoteAddr().(*net.TCPAddr).AddrPort(); from != peer {
			t.Fatalf("connected from %s, want %s", from, peer)
		}
		w.clients[peer], w.servers[peer] = c.(*net.TCPConn), s
	}
	ok(t, p.Act(t.Context()))
	got := byPeer(p.Snapshot)
	expectOutcomes(t, got, old[:2], sockdiag.ErrGone.Error())
	expectOutcomes(t, got, old[2:], "done")
	for _, peer := range old[:2] {
		must(w.clients[peer].Write([]byte("x")))(t)
		if n, err := w.servers[peer].Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("%s: the new connection: %d, %v", peer, n, err)
		}
	}
}
