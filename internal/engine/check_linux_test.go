package engine

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
)

// It runs before the parallel tests, which would slow it down.
func TestCheckHalfCut(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		w := newWorld(t)
		near, far := w.connect(network, w.near, 100), w.connect(network, w.far, 100)
		ok(t, w.toFar.Cut())
		start := time.Now()
		got := w.check(t.Context(), w.request())
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("%s: took %s, want at most 6 s", network, took)
		}
		if len(got) != 200 {
			t.Fatalf("%s: %d connections, want 200", network, len(got))
		}
		expect(t, got, near, conn.Alive, verdict.WhyAnswered)
		expect(t, got, far, conn.Dead, verdict.WhySilent)
	}
}

// However many packets are lost, none of the living is called dead.
func TestCheckLossy(t *testing.T) {
	t.Parallel()
	for range 5 {
		t.Run("world", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			peers := append(w.connect("tcp4", w.near, 100), w.connect("tcp6", w.near, 100)...)
			ok(t, w.toNear.Lossy(30, 30))
			for range 2 {
				expect(t, w.check(t.Context(), w.request()), peers, conn.Alive)
			}
		})
	}
}

// The dead among the living of a lossy path are found all the same.
func TestCheckLossyHalfDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 100)
	ok(t, w.toNear.CutPorts(ports(peers[:50])...))
	ok(t, w.toNear.Lossy(30, 30))
	r := w.request()
	r.Timeout = 3 * time.Minute
	got := w.check(t.Context(), r)
	expect(t, got, peers[:50], conn.Dead, verdict.WhySilent)
	expect(t, got, peers[50:], conn.Alive)
	for _, p := range peers[:50] {
		e, j := got[p].Evidence, got[p].Judgement
		if j.FalseChance > 1.001*verdict.MaxFalseChance || !e.Fail.Measured() || e.Fail.Chance() < 0.3 {
			t.Errorf("%s: %+v, %+v", p, e, j)
		}
	}
}

func ports(peers []netip.AddrPort) (list []uint16) {
	for _, p := range peers {
		list = append(list, p.Port())
	}
	return list
}

func TestCheckRebooted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	near, far := w.connect("tcp4", w.near, 10), append(w.connect("tcp4", w.far, 10), w.connect("tcp6", w.far, 10)...)
	ok(t, w.far.Reboot())
	got := w.check(t.Context(), w.request())
	expect(t, got, near, conn.Alive)
	expect(t, got, far, conn.Dead, verdict.WhyReset)
	for _, p := range far {
		if c := got[p]; c.Reason() != "reset by the peer or a box on the path" {
			t.Errorf("%s: %s", p, c.Reason())
		}
		if _, err := w.servers[p].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: read: %v", p, err)
		}
	}
}

func TestCheckNATForgets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		does testnet.OnForgotten
		why  verdict.Why
	}{{testnet.Drop, verdict.WhySilent}, {testnet.Reset, verdict.WhyReset}} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			inside := must(w.net.Host("inside"))(t)
			nat := must(w.net.NAT(inside, w.server, testnet.NATOptions{OnForgotten: tt.does}))(t)
			_, s := w.dial(inside, nat.Outside.IPv4(w.server), w.listener("tcp4"))
			peer := s.RemoteAddr().(*net.TCPAddr).AddrPort()
			expect(t, w.check(t.Context(), w.request()), []netip.AddrPort{peer}, conn.Alive)
			time.Sleep(verdict.MinWait) // the peer answers one in 500 ms
			ok(t, nat.Forget())
			expect(t, w.check(t.Context(), w.request()), []netip.AddrPort{peer}, conn.Dead, tt.why)
		})
	}
}

// A path that lets only small packets through keeps data from moving, though it
// is sent again and again.
func TestCheckBlackHole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.far, 1)
	nl := w.netlink(w.far)
	name, _ := w.toFar.Interface(w.far)
	ok(t, nl.LinkSetMTU(must(nl.LinkByName(name))(t), 576))
	must(w.servers[peers[0]].Write(make([]byte, 1000)))(t)
	wait(t, "the fourth retransmission", func() (yes bool) {
		control(t, w.servers[peers[0]], func(fd int) {
			yes = must(unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO))(t).Backoff >= 4
		})
		return yes
	})
	r := w.request()
	r.Rules.StuckAfter = 2 * time.Second
	expect(t, w.check(t.Context(), r), peers, conn.Stuck)
}

// A connection whose window is shut is stuck; one in CLOSE-WAIT is leaked, and
// nobody is asked about it; one that we have half closed is asked for as long
// as it takes.
func TestCheckStates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shut := w.connect("tcp4", w.near, 1)
	leaked := w.connect("tcp4", w.far, 3)
	halfAlive, halfDead := w.connect("tcp4", w.near, 3), w.connect("tcp6", w.far, 3)
	fill(t, w.servers[shut[0]])
	for _, p := range leaked {
		ok(t, w.clients[p].Close())
	}
	for _, p := range append(halfAlive, halfDead...) {
		ok(t, w.servers[p].SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 100}))
		ok(t, w.servers[p].CloseWrite())
	}
	time.Sleep(1500 * time.Millisecond)
	ok(t, w.toFar.Cut())
	record := must(w.toFar.Record())(t)
	r := w.request()
	r.Rules = verdict.Rules{StuckAfter: time.Second, LeakedAfter: time.Second}
	snap := must(w.engine.Check(t.Context(), r))(t)
	got := byPeer(snap)
	counted := "unanswered questions to 3 connections count as keepalive probes"
	if !slices.ContainsFunc(snap.Notes, func(n Note) bool { return strings.HasPrefix(n.Text, counted) }) {
		t.Errorf("of questions by the keepalive timer the notes say %+v", snap.Notes)
	}
	expect(t, got, shut, conn.Stuck)
	expect(t, got, leaked, conn.Leaked)
	expect(t, got, halfAlive, conn.Alive)
	expect(t, got, halfDead, conn.Dead, verdict.WhySilent)
	asked := 0
	for _, s := range record.Segments() {
		if s.Dst.Addr().Is4() {
			t.Errorf("a question was put about a leaked one: %v", s)
		}
		asked++
	}
	if asked == 0 {
		t.Error("the recorder saw nothing at all")
	}
	// By the default rules nothing is old enough.
	got = w.check(t.Context(), w.filtered("src "+w.toNear.IPv4(w.server).String()))
	expect(t, got, shut, conn.Alive)

	listening := must(w.engine.Check(t.Context(), w.filtered("state listening")))(t)
	n := 0
	for c := range listening.All() {
		if n++; c.Judgement.Verdict != conn.Unknown || c.Judgement.Why != verdict.WhyListening || c.Evidence.Questions != 0 {
			t.Errorf("%+v", c.Judgement)
		}
	}
	if n != 2 {
		t.Errorf("%d listeners, want 2", n)
	}
}

// A connection that both sides close while it is being asked has not been
// reset, though its program still holds the descriptor.
func TestCheckClosedByBoth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peer := w.connect("tcp4", w.far, 1)
	ok(t, w.servers[peer[0]].CloseWrite())
	wait(t, "an acknowledged FIN", func() (acknowledged bool) {
		control(t, w.servers[peer[0]], func(fd int) {
			i := must(unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO))(t)
			acknowledged = conn.State(i.State) == conn.FinWait2
		})
		return acknowledged
	})
	ok(t, w.toFar.Cut())
	got := w.during(w.request(), time.Second, func() {
		ok(t, w.toFar.Heal())
		ok(t, w.clients[peer[0]].Close())
	})
	if c := got[peer[0]]; c.Judgement.Verdict == conn.ClosingDown { // what is left of it was seen
		return
	}
	expect(t, got, peer, conn.Unknown, verdict.WhyVanished)
}

// The owner ends, or closes the descriptor and opens something else in its
// place, between two questions: every connection has an outcome, and no other
// socket is asked in its place.
func TestCheckOwnerLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bystander := w.connect("tcp4", w.near, 1)
	closed, replaced, kept := w.connect("tcp4", w.far, 2), w.connect("tcp4", w.far, 1), w.connect("tcp4", w.far, 1)
	ok(t, w.toFar.Cut())
	before := w.serverOptions()
	got := w.during(w.request(), time.Second, func() {
		for _, p := range closed {
			ok(t, w.servers[p].Close())
		}
		control(t, w.servers[replaced[0]], func(slot int) {
			control(t, w.servers[bystander[0]], func(other int) { ok(t, unix.Dup3(other, slot, unix.O_CLOEXEC)) })
		})
	})
	expect(t, got, bystander, conn.Alive)
	expect(t, got, closed, conn.ClosingDown) // its FIN is on its way
	expect(t, got, replaced, conn.ClosingDown)
	expect(t, got, kept, conn.Dead)
	for _, p := range append(bystander, kept...) {
		if o := optionsOf(t, w.servers[p]); o != before[p] {
			t.Errorf("%s: options %+v, were %+v", p, o, before[p])
		}
	}
	nothingLeft(t, w.dir)
}

// The namespace and all in it goes away in the middle of a check.
func TestCheckNamespaceGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	far := w.connect("tcp4", w.far, 5)
	ok(t, w.toFar.Cut())
	got := w.during(w.request(), time.Second, func() {
		for _, p := range far {
			ok(t, w.servers[p].SetLinger(0))
			_, _ = w.servers[p].Close(), w.clients[p].Close()
		}
		for _, l := range w.listeners {
			_ = l.Close()
		}
		ok(t, w.net.Close())
	})
	expect(t, got, far, conn.Unknown, verdict.WhyVanished)
	nothingLeft(t, w.dir)
}

// Where nothing can be written down nothing is asked, and no verdict given.
func TestCheckWithoutJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect("tcp4", w.near, 1)
	file := filepath.Join(w.dir, "file")
	ok(t, os.WriteFile(file, nil, 0o600))
	e := New(Options{RuntimeDir: file, ProcRoot: procRoot(t), HookDir: w.dir + "/none"})
	if snap, err := e.Check(t.Context(), w.request()); snap != nil || err == nil {
		t.Errorf("check: %v, %v; want an error alone", snap, err)
	}
	if plan, err := e.Plan(t.Context(), w.request()); plan != nil || err == nil {
		t.Errorf("plan: %v, %v; want an error alone", plan, err)
	}
}

// A check that is interrupted puts everything back and tells what it knows.
func TestCheckCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	near, far := w.connect("tcp4", w.near, 20), w.connect("tcp4", w.far, 20)
	closeWait := w.connect("tcp4", w.near, 8)
	w.diversify()
	for _, p := range closeWait {
		ok(t, w.clients[p].Close())
	}
	ok(t, w.toFar.Cut())
	before := w.serverOptions()
	for _, after := range []time.Duration{-1, 0, 5 * time.Millisecond, 50 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second} {
		ctx, cancel := context.WithCancel(t.Context())
		if after < 0 {
			cancel()
		}
		r := w.request()
		r.Progress = func(p Progress) {
			if p.Elapsed >= after {
				cancel()
			}
		}
		snap, err := w.engine.Check(ctx, r)
		cancel()
		if !errors.Is(err, context.Canceled) || (snap == nil) != (after < 0) {
			t.Errorf("after %s: %v, snapshot: %v", after, err, snap != nil)
		}
		w.unchanged(before)
		nothingLeft(t, w.dir)
		if after < time.Second {
			continue // answers may be on their way
		}
		got := byPeer(snap)
		expect(t, got, near, conn.Alive)
		expect(t, got, far, conn.Suspect)
	}
}
