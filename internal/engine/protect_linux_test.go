package engine

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"deadpeer/internal/conn"
	"deadpeer/internal/verdict"
)

// protected holds the lines of some peers to being left alone for a reason.
func protected(t *testing.T, list []line, peers []netip.AddrPort, reason string) {
	t.Helper()
	found := 0
	for _, l := range list {
		if !slices.Contains(peers, netip.MustParseAddrPort(l.Peer)) {
			continue
		}
		if found++; l.Verdict != conn.Unknown.String() || l.Why != verdict.WhyNotAsked || l.Reason != reason {
			t.Errorf("%s: %s (%s)", l.Peer, l.Verdict, l.Reason)
		}
	}
	if found != len(peers) {
		t.Errorf("%d connections, want %d", found, len(peers))
	}
}

func alive(t *testing.T, list []line, peers []netip.AddrPort) {
	t.Helper()
	for _, l := range list {
		if slices.Contains(peers, netip.MustParseAddrPort(l.Peer)) && l.Verdict != conn.Alive.String() {
			t.Errorf("%s: %s (%s)", l.Peer, l.Verdict, l.Reason)
		}
	}
}

// The connections of our ancestors, among them the one our own session runs
// over, are not asked, unless one is named by its cookie. Not a segment is
// sent.
func TestProtectedAncestors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	record := must(w.toNear.Record())(t)
	list, _ := lines(t, w.child(role{Do: "check", Kin: true}))
	protected(t, list, peers, "protected: your own session depends on it")
	list, _ = lines(t, w.child(role{Do: "release", Kin: true, Rules: verdict.Rules{Silence: verdict.MinSilence}}))
	protected(t, list, peers, "protected: your own session depends on it")
	if s := record.Segments(); len(s) != 0 {
		t.Errorf("sent %v", s)
	}
	list, _ = lines(t, w.child(role{Do: "check", Kin: true, Filter: fmt.Sprintf("cookie = %d", cookieOf(t, w.servers[peers[0]]))}))
	if alive(t, list, peers); len(list) != 1 {
		t.Errorf("%+v", list)
	}
}

// A session is also known by the addresses that sshd leaves in the environment,
// IPv4 in an IPv6 socket included.
func TestProtectedSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, network := range []string{"tcp4", "tcp6"} {
		peers := w.connect(network, w.near, 3)
		local := w.servers[peers[1]].LocalAddr().(*net.TCPAddr).AddrPort()
		ssh := fmt.Sprintf("SSH_CONNECTION=%s %d %s %d", peers[1].Addr(), peers[1].Port(), local.Addr(), local.Port())
		list, _ := lines(t, w.child(role{Do: "check"}, ssh))
		protected(t, list, peers[1:2], "protected: your own session depends on it")
		alive(t, list, []netip.AddrPort{peers[0], peers[2]})
		for _, bad := range []string{"", "a 1 b 2", "10.0.0.1 99999 10.0.0.2 22", "10.0.0.1 1 10.0.0.2"} {
			if _, ok := parseSSHConnection(bad); ok {
				t.Errorf("understood %q", bad)
			}
		}
	}
}

// What kubelet holds is left alone, and so are connections both ends of which
// are on this host.
func TestProtectedOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	w.open(Options{ProcRoot: procRoot(t, w.hold("kubelet", peers[0]), w.hold("kubelet2", peers[1]))})
	l := w.listener("tcp4")
	own := reached(w.toNear.IPv4(w.server), l)
	c, _ := w.dial(w.server, own.Addr(), l)
	here := c.LocalAddr().(*net.TCPAddr).AddrPort()

	got := w.check(t.Context(), w.request())
	expect(t, got, peers[1:], conn.Alive)
	expect(t, got, append(peers[:1], own, here), conn.Unknown, verdict.WhyNotAsked)
	if r := got[peers[0]]; r.Reason() != "protected: it belongs to kubelet" {
		t.Errorf("%s", r.Reason())
	}
	for _, p := range []netip.AddrPort{own, here} {
		if r := got[p]; r.Reason() != "protected: both ends are on this host" {
			t.Errorf("%s: %s", p, r.Reason())
		}
	}
	for _, p := range []netip.AddrPort{peers[0], here} {
		named := w.check(t.Context(), w.filtered(fmt.Sprintf("cookie = %d", got[p].Sock.Cookie)))
		if expect(t, named, []netip.AddrPort{p}, conn.Alive); len(named) != 1 {
			t.Errorf("%d connections, want 1", len(named))
		}
	}
}

// hold starts a process of that name which holds a server's socket, too.
func (w *world) hold(name string, peer netip.AddrPort) (pid int) {
	w.t.Helper()
	cmd := role{Do: "hold", Kin: true, Filter: name}.command(context.Background())
	f := must(w.servers[peer].File())(w.t)
	defer func() { _ = f.Close() }()
	cmd.ExtraFiles = []*os.File{f}
	stdin, stdout := must(cmd.StdinPipe())(w.t), must(cmd.StdoutPipe())(w.t)
	ok(w.t, cmd.Start())
	w.t.Cleanup(func() {
		_ = stdin.Close()
		ok(w.t, cmd.Wait())
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		w.t.Fatalf("holder said %q, %v", line, err)
	}
	return cmd.Process.Pid
}

func FuzzParseSSHConnection(f *testing.F) {
	f.Add("10.0.0.1 50000 10.0.0.2 22")
	f.Add("fe80::1%eth0 50000 ::ffff:10.0.0.2 22")
	f.Add("\x00 -1 \x1b[31m 65536")
	f.Fuzz(func(t *testing.T, v string) {
		session, ok := parseSSHConnection(v)
		for _, a := range session {
			if ok && (!a.IsValid() || a.Addr().Is4In6() || a.Addr().Zone() != "") || !ok && a != (netip.AddrPort{}) && a == session[1] {
				t.Errorf("%q: %v, %v", v, session, ok)
			}
		}
	})
}
