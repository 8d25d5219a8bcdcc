package probe

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// Our duplicate may turn out to be the last, with data that nobody takes and
// SO_LINGER: closing it does not keep us waiting.
func TestLingerNeverBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pair()
	const lingers = 60
	ok(t, unix.SetsockoptLinger(p.fd(t), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: lingers}))
	ok(t, w.link.Cut())
	must(p.Write([]byte("nobody takes it")))(t)
	target := w.target(p)
	w.asker.options.Step = func(s Step) {
		if s == StepAsked {
			ok(t, p.Close())
		}
	}
	start := time.Now()
	if r := w.ask(target)[0]; r.Refusal != NotRefused {
		t.Errorf("%+v", r)
	}
	w.asker.options.Step = nil
	ok(t, w.asker.Close())
	if took := time.Since(start); took > lingers*time.Second/2 {
		t.Errorf("took %s", took)
	}
	// The data is still on its way: the socket has not been reset.
	wait := time.Now().Add(10 * time.Second)
	for w.read(p).State != conn.FinWait1 {
		if time.Now().After(wait) {
			t.Fatalf("%+v", w.read(p))
		}
		time.Sleep(time.Millisecond)
	}
}

// Sockets that several processes hold are asked once, through whichever holds
// them still.
func TestShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, q := w.pair(), w.pair()
	for _, p := range []*pair{p, q} {
		p.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	before := p.options(t)
	first, stopFirst, _ := start(t, "hold", p, q)
	second, _, _ := start(t, "hold", p, q)
	target := w.target(p)
	target.Owners = []conn.Owner{{PID: first, FD: 3}, {PID: second, FD: 3}, target.Owners[0]}
	other := w.target(q)
	other.Owners = []conn.Owner{{PID: second, FD: 4}, {PID: first, FD: 4}}
	ask := func() {
		t.Helper()
		for _, r := range w.ask(target, other) {
			if r.Refusal != NotRefused || !r.Reuses {
				t.Errorf("%+v", r)
			}
		}
		for _, p := range []*pair{p, q} {
			if now := p.options(t); now != before {
				t.Errorf("options %+v, were %+v", now, before)
			}
		}
	}
	ask()
	stopFirst()
	ask()
	// Closed here, it lives in the other process.
	ok(t, q.Close())
	ask2 := w.ask(other)[0]
	if ask2.Refusal != NotRefused {
		t.Errorf("%+v", ask2)
	}
}

// Nothing is changed, and a socket that would be is not asked, when the
// journal cannot be written.
func TestJournalFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, q := w.pair(), w.pair()
	p.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	ok(t, q.peer.CloseWrite())
	w.waitState(q, conn.CloseWait)
	w.unfresh(q)
	w.ledger.err = errors.New("disk full")
	before := []conn.Sock{w.read(p), w.read(q)}
	was := []options{p.options(t), q.options(t)}
	for i, r := range w.ask(w.target(p), w.target(q)) {
		now := w.read([]*pair{p, q}[i])
		if r.Refusal != JournalFailed || now.SegsOut != before[i].SegsOut {
			t.Errorf("%+v, %d segments sent", r, now.SegsOut-before[i].SegsOut)
		}
		if o := []*pair{p, q}[i].options(t); o != was[i] {
			t.Errorf("options %+v, were %+v", o, was[i])
		}
	}
	w.ledger.err = nil
}

// What the program sets while it is being asked is not overwritten.
func TestProgramChangesItsOptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	earlier, later := w.pair(), w.pair()
	for _, p := range []*pair{earlier, later} {
		ok(t, p.peer.CloseWrite())
		w.waitState(p, conn.CloseWait)
	}
	w.unfresh(earlier, later)
	w.asker.options.Step = func(s Step) {
		switch s {
		case StepJournalled:
			earlier.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 111)
		case StepAsked:
			later.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 22)
		}
	}
	results := w.ask(w.target(earlier), w.target(later))
	w.asker.options.Step = nil
	if results[0].Refusal != ChangedMeanwhile || results[1].Refusal != NotRefused {
		t.Errorf("%+v", results)
	}
	if o := earlier.options(t); o.idle != 111 || o.interval != 75 || o.probes != 9 || o.keepalive != 0 {
		t.Errorf("%+v", o)
	}
	if o := later.options(t); o.idle != 7200 || o.interval != 22 || o.probes != 9 || o.keepalive != 0 {
		t.Errorf("%+v", o)
	}
}

// A reset socket that its program still holds is told from a lost one, and one
// that the kernel gave up by the segments it has received.
func TestEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pair()
	target := w.target(p)
	if _, ended := w.asker.Ended(target); ended {
		t.Error("ended while it lives")
	}
	before := w.read(p)
	ok(t, p.peer.SetLinger(0))
	ok(t, p.peer.Close())
	deadline := time.Now().Add(10 * time.Second)
	for {
		if segsIn, ended := w.asker.Ended(target); ended {
			if segsIn == before.SegsIn {
				t.Error("no segment came with the reset")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not ended")
		}
		time.Sleep(time.Millisecond)
	}
	if r := w.ask(target)[0]; !r.Ended || r.Refusal != NotRefused {
		t.Errorf("%+v", r)
	}
	ok(t, p.Close())
	if _, ended := w.asker.Ended(target); ended {
		t.Error("ended although nobody holds it")
	}
}

// Where both sides have closed nobody was reset, though the program still
// holds its descriptor.
func TestEndedOrderly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pair()
	ok(t, p.CloseWrite())
	w.waitState(p, conn.FinWait2)
	target := w.target(p)
	ok(t, p.peer.Close())
	var r Result
	for deadline := time.Now().Add(10 * time.Second); !r.Ended; time.Sleep(time.Millisecond) {
		if r = w.ask(target)[0]; time.Now().After(deadline) {
			t.Fatalf("%+v", r)
		}
	}
	if !r.Orderly {
		t.Errorf("%+v", r)
	}
	if _, ended := w.asker.Ended(target); ended {
		t.Error("held to be reset")
	}
}

// A machine that stood still, or a deadpeer that was killed, left the kernel
// to count more unanswered probes than the socket allows: with its count back
// the kernel would end it at the next expiry without a probe, though its peer
// is there again.
func TestRestoreAfterManyProbes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pair()
	for name, value := range map[int]int{unix.TCP_KEEPCNT: 2, unix.TCP_KEEPIDLE: 6, unix.TCP_KEEPINTVL: 75} {
		p.set(t, unix.IPPROTO_TCP, name, value)
	}
	p.set(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	ok(t, p.peer.CloseWrite())
	w.waitState(p, conn.CloseWait)
	w.unfresh(p)
	before := p.options(t)
	ok(t, w.link.Cut())
	w.asker.options.Step = func(s Step) {
		for s == StepAsked && w.read(p).Probes < 2 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	r := w.ask(w.target(p))[0]
	w.asker.options.Step = nil
	if r.Refusal != Probing {
		t.Errorf("%+v", r)
	}
	ok(t, w.link.Heal())
	// Its own idle time is back, and after it the kernel asks.
	for deadline := time.Now().Add(15 * time.Second); w.read(p).SegsIn == r.SegsIn; time.Sleep(20 * time.Millisecond) {
		if s := w.read(p); s.State != conn.CloseWait || time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
	record, left := w.ledger.outstanding[p.sock.ID()]
	if !left {
		t.Fatal("the journal has forgotten what is to be put back")
	}
	ok(t, w.asker.Restore(w.target(p), record))
	if now := p.options(t); now != before {
		t.Errorf("options %+v, were %+v", now, before)
	}
	delete(w.ledger.outstanding, p.sock.ID())
}
