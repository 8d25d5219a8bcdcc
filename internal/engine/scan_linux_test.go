package engine

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
	"deadpeer/keepalive"
)

// A filter on the verdict selects what is shown, not who is asked.
func TestVerdictFilter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	near, far := w.connect("tcp4", w.near, 5), w.connect("tcp4", w.far, 5)
	ok(t, w.toFar.Cut())
	got := w.check(t.Context(), w.filtered("verdict = dead"))
	if expect(t, got, far, conn.Dead); len(got) != len(far) {
		t.Errorf("%d connections, want %d", len(got), len(far))
	}
	for filter, want := range map[string]int{"verdict = alive": 10, "verdict = quiet": 0, "verdict != alive": 0, "verdict = dead or sport > 0": 10} {
		r := w.filtered(filter)
		r.Rules.Fresh = time.Hour
		if n := must(w.engine.Scan(t.Context(), r))(t).Len(); n != want {
			t.Errorf("scan %s: %d, want %d", filter, n, want)
		}
	}
	r := w.filtered("verdict = quiet")
	r.Rules.Fresh = time.Millisecond
	time.Sleep(50 * time.Millisecond)
	quiet := byPeer(must(w.engine.Scan(t.Context(), r))(t))
	expect(t, quiet, append(slices.Clone(near), far...), conn.Quiet)
	for _, c := range quiet {
		if got := c.Namespace(); got != w.nsPath() {
			t.Errorf("found in namespace %q, want %q", got, w.nsPath())
		}
	}
}

// scan sends nothing, changes nothing, and yet knows owners and settings.
func TestScan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := append(w.connect("tcp4", w.near, 16), w.connect("tcp6", w.near, 16)...)
	w.diversify()
	before := w.serverOptions()
	record := must(w.toNear.Record())(t)
	cookies := map[netip.AddrPort]uint64{}
	for p, s := range w.servers {
		cookies[p] = cookieOf(t, s)
	}
	r := w.request()
	r.Settings, r.Memory, r.Rules.Fresh = true, true, time.Hour
	got := byPeer(must(w.engine.Scan(t.Context(), r))(t))
	for _, p := range peers {
		c, o := got[p], before[p]
		if !c.Known || c.Settings.KeepAlive != (o.keepalive == 1) || int(c.Settings.Idle.Seconds()) != o.idle ||
			int(c.Settings.Interval.Seconds()) != o.interval || c.Settings.Probes != o.probes {
			t.Errorf("%s: settings %+v, want %+v", p, c.Settings, o)
		}
		if len(c.Owners) != 1 || int(c.Owners[0].PID) != os.Getpid() || c.Sock.Cookie != cookies[p] || c.Memory == nil || c.Memory.SendBuffer == 0 {
			t.Errorf("%s: %+v", p, c)
		}
		if c.Judgement.Verdict != conn.Alive || c.Judgement.Why != verdict.WhyFresh {
			t.Errorf("%s: %+v", p, c.Judgement)
		}
	}
	w.unchanged(before)
	if _, err := os.Stat(w.dir + "/ask.lock"); err == nil {
		t.Error("scan has taken the right to ask")
	}
	// Whatever scan may have sent comes before this.
	must(w.servers[peers[0]].Write([]byte("x")))(t)
	must(record.Wait(t.Context(), func(s testnet.Segment) bool { return s.Payload == 1 }))(t)
	if s := record.Segments(); len(s) == 0 || s[0].Payload != 1 {
		t.Errorf("scan sent %v", s)
	}
}

// loopback is the client's end of a connection within this host.
func loopback(t *testing.T) net.Conn {
	t.Helper()
	l := must(net.Listen("tcp4", "127.0.0.1:0"))(t)
	c := must(net.Dial("tcp4", l.Addr().String()))(t)
	s := must(l.Accept())(t)
	t.Cleanup(func() { _, _, _ = c.Close(), s.Close(), l.Close() })
	return c
}

// Who is not root sees connections, and the owners of none but his own.
func TestScanUnprivileged(t *testing.T) {
	t.Parallel()
	needRoot(t)
	c := loopback(t)
	w := &world{t: t, dir: runtimeDir(t)}
	cmd := asNobody(w.child(role{Do: "scan", Kin: true, Netns: "current", Filter: "src " + c.LocalAddr().String()}))
	list, last := lines(t, cmd)
	if len(list) != 1 || list[0].Owners != 0 || list[0].Verdict != conn.Alive.String() {
		t.Errorf("%+v", list)
	}
	if !strings.Contains(strings.Join(last.Notes, "\n"), "CAP_SYS_PTRACE") {
		t.Errorf("notes %q", last.Notes)
	}
}

// A connection whose program is another user's is not said to have none.
func TestHiddenOwner(t *testing.T) {
	t.Parallel()
	needRoot(t)
	c := loopback(t)
	w := &world{t: t, dir: must(os.MkdirTemp("/tmp", "deadpeer-test-"))(t)}
	defer func() { _ = os.RemoveAll(w.dir) }()
	ok(t, os.Chown(w.dir, nobody, nobody))
	for _, do := range []string{"check", "attach"} {
		r := role{Do: do, Kin: true, Netns: "current", Filter: "src " + c.LocalAddr().String(), Policy: keepalive.Policy{Idle: time.Minute, UserTimeout: -1}}
		list, last := lines(t, asNobody(w.child(r)))
		if len(list) != 1 {
			t.Fatalf("%s: %+v", do, list)
		}
		if why := list[0].Reason + list[0].Outcome; !strings.Contains(why, string(held.Hidden)) {
			t.Errorf("%s: %q", do, why)
		}
		if last.Denied != (do == "attach") {
			t.Errorf("%s: denied is %v", do, last.Denied)
		}
	}
}

// needRoot skips what needs more than one user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		t.Skip("needs root: there is no other user")
	}
}
