package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/attach"
	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/keepalive"
)

func minute() keepalive.Policy {
	return keepalive.Policy{Idle: 40 * time.Second, Interval: 5 * time.Second, Probes: 4, UserTimeout: -1}
}

func (w *world) attach(r Request, p keepalive.Policy) *Attached {
	w.t.Helper()
	return must(w.engine.Attach(w.t.Context(), AttachRequest{Request: r, Rules: []AttachRule{{Policy: p}}}))(w.t)
}

func (w *world) detach(ids ...string) []*Attached {
	w.t.Helper()
	return must(w.engine.Detach(w.t.Context(), ids...))(w.t)
}

// have holds the server's sockets to a policy, and those of others to what
// they had.
func (w *world) have(peers []netip.AddrPort, p keepalive.Policy, before map[netip.AddrPort]options) {
	w.t.Helper()
	now := w.serverOptions()
	for _, peer := range peers {
		want := before[peer]
		want.keepalive, want.idle, want.interval, want.probes = 1, int(p.Idle/time.Second), int(p.Interval/time.Second), p.Probes
		if p.UserTimeout >= 0 {
			want.userTimeout = int(p.UserTimeout / time.Millisecond)
		}
		if now[peer] != want {
			w.t.Errorf("%s: options %+v, want %+v", peer, now[peer], want)
		}
		delete(now, peer)
	}
	for peer, o := range now {
		if o != before[peer] {
			w.t.Errorf("%s: options %+v, were %+v", peer, o, before[peer])
		}
	}
}

// What is attached has the policy, what is not has not, and what is detached
// is as it was, in whichever order two attachments of the same sockets go, and
// by either transport.
func TestAttachDetach(t *testing.T) {
	t.Parallel()
	for name, byBPF := range map[string]bool{"pidfd_getfd": false, "BPF": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			oldestFirst := byBPF
			w := newWorld(t)
			if byBPF {
				needBPF(t)
				w.engine.bpfFrom = 1
			}
			peers, others := w.connect("tcp4", w.near, 8), w.connect("tcp6", w.near, 4)
			w.diversify()
			before := w.serverOptions()
			first := w.attach(w.filtered("family = ipv4"), minute())
			if first.Matched != len(peers) || first.Changed != len(peers) || first.Failed != 0 {
				t.Errorf("%+v", first)
			}
			if f := first.InFlight; f == nil || !f.GivesUp || f.Earliest < 10*time.Minute {
				t.Errorf("data in flight: %+v", f)
			}
			for c := range first.Snapshot.All() {
				if !c.Known || c.Settings.Idle != 40*time.Second || c.Outcome == nil || !c.Outcome.Done {
					t.Errorf("%s shows %+v, %+v", c.Sock.Peer(), c.Settings, c.Outcome)
				}
			}
			w.have(peers, minute(), before)
			if how := strings.Join(first.Snapshot.How, "\n"); !strings.Contains(how, "changed 8 connections by "+name+" ") {
				t.Error(how)
			}

			both := minute()
			both.UserTimeout = time.Minute
			second := w.attach(w.request(), both)
			if second.Changed != len(peers)+len(others) || second.InFlight != nil || !slices.Equal(second.TakenOver, []TakenOver{{first.ID, len(peers)}}) {
				t.Errorf("%+v", second)
			}
			w.have(append(peers, others...), both, before)
			list := must(w.engine.Attachments(t.Context()))(t)
			if len(list) != 1 || list[0].ID != second.ID || list[0].Sockets != 12 || list[0].Ended != 0 || list[0].Incomplete != 0 {
				t.Errorf("%+v, want one: the second has all sockets", list)
			}
			third := w.attach(w.filtered("family = ipv6"), minute())
			ids := []string{second.ID, third.ID}
			if !oldestFirst {
				ids = []string{third.ID, second.ID}
			}
			for _, id := range ids {
				w.detach(id)
			}
			w.unchanged(before)
			nothingLeft(t, w.dir)
		})
	}
}

func TestDetachUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect("tcp4", w.near, 1)
	a := w.attach(w.request(), minute())
	var unknown *UnknownAttachmentError
	if _, err := w.engine.Detach(t.Context(), "0000000"); !errors.As(err, &unknown) || !strings.Contains(err.Error(), a.ID) {
		t.Errorf("got %v, want the known ones named", err)
	}
	if done := w.detach(); len(done) != 1 || done[0].Changed != 1 || done[0].ByValue != 3 {
		t.Errorf("%+v", done[0])
	}
	if done := w.detach(); len(done) != 0 {
		t.Errorf("%+v, want none", done)
	}
}

// A dry run says what would be done, and changes and writes nothing.
func TestAttachDryRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect("tcp4", w.near, 3)
	w.diversify()
	before := w.serverOptions()
	dry := func() *Attached {
		return must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute()}}, DryRun: true}))(t)
	}
	if a := dry(); a.ID != "" || a.Matched != 3 || a.Changed != 3 || len(a.TakenOver) > 0 {
		t.Errorf("%+v", a)
	}
	w.unchanged(before)
	nothingLeft(t, w.dir)
	older := w.attach(w.request(), keepalive.Policy{Probes: 7, UserTimeout: -1})
	if a := dry(); a.ID != "" || !slices.Equal(a.TakenOver, []TakenOver{{older.ID, 3}}) {
		t.Errorf("%+v", a)
	}
	w.detach()
	w.unchanged(before)
	nothingLeft(t, w.dir)
}

// What the program itself changes while attached stays when detached, the rest
// is put back.
func TestDetachLeavesTheProgramsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	for _, p := range peers {
		setOpt(t, w.servers[p], unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	}
	before := w.serverOptions()
	w.attach(w.request(), minute())
	setOpt(t, w.servers[peers[0]], unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77)
	setOpt(t, w.servers[peers[1]], unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	setOpt(t, w.servers[peers[2]], unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 99_000)
	// A second attachment in between must not take our values for theirs.
	w.attach(w.request(), keepalive.Policy{Probes: 6, UserTimeout: -1})
	said := map[netip.AddrPort]string{}
	for p, c := range byPeer(w.detach()[0].Snapshot) {
		said[p] = c.Outcome.Error
	}
	now := w.serverOptions()
	want := [3]options{before[peers[0]], before[peers[1]], before[peers[2]]}
	want[0].idle, want[2].userTimeout = 77, 99_000
	want[1].keepalive = 0 // it was off when the second came
	for n, p := range peers {
		if now[p] != want[n] {
			t.Errorf("%s: options %+v, want %+v (%s)", p, now[p], want[n], said[p])
		}
	}

	w.attach(w.request(), minute())
	setOpt(t, w.servers[peers[0]], unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 33)
	if c := byPeer(w.detach()[0].Snapshot)[peers[0]]; c.Outcome.Error != "interval 33s left: its program has changed it" {
		t.Errorf("said %q", c.Outcome.Error)
	}
}

// A deadpeer is killed at every step of attaching and detaching: detach gives
// everything back.
func TestAttachKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect("tcp4", w.near, 6)
	w.diversify()
	before := w.serverOptions()
	for _, twice := range []bool{false, true} {
		for _, step := range []attach.Step{
			attach.StepJournalled, attach.StepSet, attach.StepApplied, attach.StepUndoing, attach.StepRestored, attach.StepForgotten,
		} {
			if twice {
				w.attach(w.request(), keepalive.Policy{Idle: 99 * time.Second, Interval: 9 * time.Second, Probes: 9, UserTimeout: -1})
			}
			do := "attach"
			if step == attach.StepUndoing || step == attach.StepRestored || step == attach.StepForgotten {
				do = "detach"
				w.attach(w.request(), minute())
			}
			killed(t, w.child(role{Do: do, Policy: minute(), KillAt: probe.Step(step)}))
			changed := 0
			for p, o := range w.serverOptions() {
				if o != before[p] {
					changed++
				}
			}
			if damaged := step == attach.StepSet || step == attach.StepApplied || step == attach.StepUndoing || twice && step == attach.StepJournalled; damaged != (changed > 0) {
				t.Errorf("killed when %s: %d sockets are changed", step, changed)
			}
			w.detach()
			w.unchanged(before)
			nothingLeft(t, w.dir)
		}
	}
}

// A user timeout that could not be set at once follows, and leaves the rest as
// it is, by either transport.
func TestAttachTimeoutFollows(t *testing.T) {
	t.Parallel()
	for name, from := range map[string]int{"pidfd_getfd": 0, "BPF": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if from > 0 {
				needBPF(t)
			}
			shut := w.connect("tcp4", w.near, 1)
			before := w.serverOptions()
			fill(t, w.servers[shut[0]])
			var once sync.Once
			w.open(Options{ProcRoot: procRoot(t), HookDir: w.dir + "/none", AttachStep: func(s attach.Step) {
				if s == attach.StepApplied {
					once.Do(func() { go func() { _, _ = io.Copy(io.Discard, w.clients[shut[0]]) }() }) // ends with the connection
				}
			}})
			w.engine.bpfFrom = from
			p := minute()
			p.UserTimeout = 70 * time.Second
			if a := w.attach(w.request(), p); a.Changed != 1 || a.Failed != 0 {
				t.Errorf("%+v: %+v", a, byPeer(a.Snapshot)[shut[0]].Outcome)
			}
			w.have(shut, p, before)
			w.detach()
			w.unchanged(before)
		})
	}
}

// Sockets that have ended are forgotten, and an attachment with them.
func TestAttachEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	w.attach(w.request(), minute())
	ok(t, w.servers[peers[0]].Close())
	list := must(w.engine.Attachments(t.Context()))(t)
	if len(list) != 1 || list[0].Sockets != 2 || list[0].Ended != 1 {
		t.Errorf("%+v", list)
	}
	if list = must(w.engine.Attachments(t.Context()))(t); list[0].Sockets != 2 || list[0].Ended != 0 {
		t.Errorf("%+v, want the ended one forgotten", list)
	}
	_, _ = w.servers[peers[1]].Close(), w.servers[peers[2]].Close()
	must(w.engine.Attachments(t.Context()))(t)
	nothingLeft(t, w.dir)
}

// What ends, or is changed by its program, between being listed and being
// changed: the one is no failure, the other keeps its own.
func TestAttachMeanwhile(t *testing.T) {
	t.Parallel()
	needBPF(t)
	for name, from := range map[string]int{"BPF": 1, "pidfd_getfd": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			peers := w.connect("tcp4", w.near, 4)
			before := w.serverOptions()
			once := false
			w.open(Options{AttachStep: func(s attach.Step) {
				if s != attach.StepJournalled || once {
					return
				}
				once = true
				ok(t, w.servers[peers[0]].SetLinger(0))
				ok(t, w.servers[peers[0]].Close())
				setOpt(t, w.servers[peers[1]], unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77)
			}})
			w.engine.bpfFrom = from
			a := w.attach(w.request(), minute())
			if a.Changed != 3 || a.Matched != 3 || a.Failed != 0 || a.Ended != 1 {
				t.Errorf("%d of %d changed, %d failed, %d ended", a.Changed, a.Matched, a.Failed, a.Ended)
			}
			delete(w.servers, peers[0])
			delete(before, peers[0])
			w.have(peers[1:], minute(), before)
			w.detach()
			own := before[peers[1]]
			own.idle = 77
			before[peers[1]] = own
			w.unchanged(before)
			nothingLeft(t, w.dir)
		})
	}
}

// fill writes until the peer's window is shut and stays so.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	ok(t, c.SetWriteDeadline(time.Now().Add(500*time.Millisecond)))
	_, err := io.Copy(c, zeros{})
	if !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(fmt.Sprint(err), "timeout") {
		t.Fatal(err)
	}
	ok(t, c.SetWriteDeadline(time.Time{}))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// No living connection dies of a policy with a user timeout, though its window
// is shut, or it has been idle for long, or its policy is in the middle of
// probing.
func TestAttachHurtsNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shut, idle := w.connect("tcp4", w.near, 1)[0], w.connect("tcp4", w.near, 6)
	probed := w.connect("tcp4", w.far, 1)[0]
	fill(t, w.servers[shut])
	s := w.servers[probed]
	for opt, v := range map[int]int{unix.TCP_KEEPCNT: 100, unix.TCP_KEEPINTVL: 1} {
		setOpt(t, s, unix.IPPROTO_TCP, opt, v)
	}
	ok(t, w.toFar.Cut())
	setOpt(t, s, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	setOpt(t, s, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
	time.Sleep(4500 * time.Millisecond) // idle for longer than the policy has patience
	a := w.attach(w.request(), keepalive.Policy{Idle: time.Second, Interval: time.Second, Probes: 3, UserTimeout: 4 * time.Second})
	got := byPeer(a.Snapshot)
	if o := got[shut].Outcome; !o.Done || o.Error != "without the user timeout: the peer's window is shut" || got[shut].Settings.UserTimeout != 0 {
		t.Errorf("with a shut window: %+v", o)
	}
	for _, p := range idle {
		if o := got[p].Outcome; !o.Done || o.Error != "" || got[p].Settings.UserTimeout != 4*time.Second {
			t.Errorf("idle: %+v, %v", o, got[p].Settings)
		}
	}
	if o := got[probed].Outcome; o.Done || !strings.Contains(o.Error, "probes are unanswered already") || got[probed].Settings.Probes != 100 {
		t.Errorf("in the middle of probing: %+v, %v", o, got[probed].Settings)
	}
	ok(t, w.toFar.Heal())
	time.Sleep(6 * time.Second)
	for _, p := range append(idle, shut, probed) {
		control(t, w.servers[p], func(fd int) {
			if info := must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO))(t); conn.State(info.State) != conn.Established {
				t.Errorf("%s is %s", p, conn.State(info.State))
			}
		})
	}
}

// Two namespaces have connections of the same addresses and ports: only that
// of the chosen one changes, by either transport.
func TestAttachSameTuple(t *testing.T) {
	t.Parallel()
	for name, byBPF := range map[string]bool{"pidfd_getfd": false, "BPF": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if byBPF {
				needBPF(t)
				w.engine.bpfFrom = 1
			}
			w.sameTuple(t, name)
		})
	}
}

func (w *world) sameTuple(t *testing.T, transport string) {
	t.Helper()
	pair := func(do func(func() error) error) (c, s net.Conn) {
		ok(t, do(func() error {
			l, err := net.Listen("tcp4", "127.0.0.1:7000")
			if err != nil {
				return err
			}
			defer func() { _ = l.Close() }()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7001}, KeepAlive: -1}
			if c, err = d.Dial("tcp4", "127.0.0.1:7000"); err == nil {
				s, err = l.Accept()
			}
			return err
		}))
		t.Cleanup(func() { _, _ = c.Close(), s.Close() })
		return c, s
	}
	for _, h := range []func(func() error) error{w.server.Do, w.near.Do} {
		ok(t, h(func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() }))
	}
	c, s := pair(w.server.Do)
	c2, s2 := pair(w.near.Do)
	all := []*net.TCPConn{c.(*net.TCPConn), s.(*net.TCPConn), c2.(*net.TCPConn), s2.(*net.TCPConn)}
	var before []options
	for _, c := range all {
		before = append(before, optionsOf(t, c))
	}
	a := w.attach(w.filtered("sport = :7000 or dport = :7000"), minute())
	if how := strings.Join(a.Snapshot.How, "\n"); a.Changed != 2 || !strings.Contains(how, "changed 2 connections by "+transport+" ") {
		t.Errorf("%+v: %s", a, how)
	}
	for n, c := range all {
		if o := optionsOf(t, c); (o != before[n]) != (n < 2) {
			t.Errorf("%d: %+v, was %+v", n, o, before[n])
		}
	}
	w.detach()
	for n, c := range all {
		if o := optionsOf(t, c); o != before[n] {
			t.Errorf("%d: %+v, was %+v", n, o, before[n])
		}
	}
}
