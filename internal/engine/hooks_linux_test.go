package engine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"deadpeer/internal/attach"
	"deadpeer/internal/bpf"
	"deadpeer/keepalive"
)

// hookDir is a folder on a bpffs of the test's own.
func hookDir(t *testing.T) string {
	t.Helper()
	needBPF(t)
	dir := t.TempDir()
	ok(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { ok(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir + "/hooks"
}

// testCgroup is a cgroup of the test's own, as a path below the root.
func testCgroup(t *testing.T) string {
	t.Helper()
	needBPF(t)
	own, err := ownCgroup()
	dir := filepath.Join(own, "deadpeer-engine-test-"+strconv.Itoa(os.Getpid())+"-"+filepath.Base(t.Name()))
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	ok(t, err)
	t.Cleanup(func() {
		wait(t, "remove "+dir, func() bool { return unix.Rmdir(dir) == nil })
	})
	return "/" + must(filepath.Rel(must(bpf.CgroupRoot())(t), dir))(t)
}

// pairs makes connections on loopback ports, says what they have after it was
// told to, and ends with its input. Told to flood, it goes on making them until
// it is told the next, and keeps the newest with keepalive: one still on is shown.
const pairs = `
import ctypes, select, socket, sys
l = socket.create_server(("127.0.0.1", 7000))
made = []
def options(s):
    return [s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)] + [s.getsockopt(socket.IPPROTO_TCP, o) for o in (4, 5, 6, 18)]
def make():
    made.extend([socket.create_connection(l.getsockname()), l.accept()[0]])
for word in sys.stdin:
    word = word.strip()
    if word == "make":
        make()
    elif word == "flood":
        while not select.select([sys.stdin], [], [], 0)[0]:
            make()
            if not options(made[-2])[0] and not options(made[-1])[0]:
                del made[-2:]
            del made[:-600]
        made.sort(key=options)
    elif word.startswith("dial "):
        made += [socket.socket()] * 2
        made[-1].setblocking(False)
        made[-1].connect_ex((word.split()[1], int(word.split()[2])))
    elif word == "queue":
        queued = socket.create_connection(l.getsockname())
    elif word == "reconnect":
        ctypes.CDLL(None).connect(made[-2].fileno(), bytes(16), 16) # to AF_UNSPEC: disconnects
        made[-2].connect(l.getsockname())
        made[-1] = l.accept()[0]
    elif word == "accept":
        made += [queued, l.accept()[0]]
    elif word == "weaken":
        for s in made:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1000)
    if word == "show first":
        made = made[2:] + made[:2]
    print(" ".join(map(str, options(made[-1]))), "|", " ".join(map(str, options(made[-2]))), flush=True)
`

// maker is a process that makes connections in a cgroup.
type maker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  interface{ WriteString(string) (int, error) }
	out *bufio.Reader
}

func newMaker(t *testing.T, cgroup string, start func(*exec.Cmd) error) *maker {
	t.Helper()
	cmd := exec.Command("sh", "-c", `ip link set lo up && echo 0 >"$1/cgroup.procs" && exec /usr/bin/python3 -c "$2"`, "sh", must(bpf.CgroupRoot())(t)+cgroup, pairs)
	cmd.Stderr = os.Stderr
	in, out := must(cmd.StdinPipe())(t), must(cmd.StdoutPipe())(t)
	ok(t, start(cmd))
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return &maker{t, cmd, in.(*os.File), bufio.NewReader(out)}
}

// do tells the maker what to do, and holds both ends' options after it to what
// is wanted.
func (m *maker) do(what, want string) {
	m.t.Helper()
	must(m.in.WriteString(what + "\n"))(m.t)
	m.done(what, want)
}

func (m *maker) done(what, want string) {
	m.t.Helper()
	if line := must(m.out.ReadString('\n'))(m.t); line != want+" | "+want+"\n" {
		m.t.Errorf("after %s: %s, want %s of both", what, strings.TrimSpace(line), want)
	}
}

// Connections of a cgroup get the policy when they are made, cannot lose it
// when that is enforced, are shown as ours, and are as they were after detach.
func TestAttachNew(t *testing.T) {
	t.Parallel()
	for name, enforce := range map[string]bool{"plain": false, "enforced": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cgroup := testCgroup(t)
			hooks := hookDir(t)
			w.open(Options{HookDir: hooks})
			m := newMaker(t, cgroup, w.server.Start)
			m.do("make", "0 7200 75 9 0")
			future := filter(t, "sport = :7000 or dport = :7000")
			a := must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{
				Filter: future, Future: future, Policy: minute(), New: true, Enforce: enforce, Cgroup: cgroup,
			}}}))(t)
			if a.ID == "" || !a.New || a.Changed != 2 {
				t.Errorf("%+v", a)
			}
			m.do("make", "1 40 5 4 0")
			dry := must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), DryRun: true, Rules: []AttachRule{{Policy: minute()}}}))(t)
			taken := []TakenOver{{a.ID, 4}}
			if enforce {
				taken = nil
			}
			if !slices.Equal(dry.TakenOver, taken) || (dry.Failed == 4) != enforce {
				t.Errorf("dry run: %d failed, %+v taken over", dry.Failed, dry.TakenOver)
			}
			weakened := "0 1000 5 4 0"
			if enforce {
				weakened = "1 40 5 4 0"
			}
			m.do("weaken", weakened)
			m.do("show first", weakened)
			m.do("show first", weakened)
			if enforce {
				b := w.attach(w.request(), keepalive.Policy{Idle: 20 * time.Second, UserTimeout: -1})
				if b.ID != "" || b.Failed != 4 || b.Changed != 0 || len(b.TakenOver) > 0 {
					t.Errorf("over what is enforced: %+v", b)
				}
				for c := range b.Snapshot.All() {
					if !strings.Contains(c.Outcome.Error, "attachment "+a.ID+" enforces") {
						t.Errorf("over what is enforced: %+v", c.Outcome)
					}
				}
				m.do("show first", weakened)
				m.do("show first", weakened)
			}
			ours := 0
			for c := range must(w.engine.Scan(t.Context(), w.request()))(t).All() {
				if c.Origin == OriginDeadpeer {
					ours++
				}
			}
			list := must(w.engine.Attachments(t.Context()))(t)
			if ours != 4 || len(list) != 1 || list[0].Sockets != 4 || list[0].Given != 2 || !list[0].Active || (list[0].Limited > 0) != enforce {
				t.Errorf("%d shown as ours, %+v", ours, list)
			}
			if done := w.detach(); len(done) != 1 || done[0].Changed != 4 || done[0].Failed != 0 {
				t.Errorf("%+v", done)
			}
			m.do("show first", "0 1000 75 9 0") // its own, before and after
			m.do("show first", "0 1000 75 9 0")
			m.do("make", "0 7200 75 9 0")
			if left := must(bpf.Hooks(hooks))(t); len(left) != 0 {
				t.Errorf("%d hooks are left", len(left))
			}
			nothingLeft(t, w.dir)
		})
	}
}

// What deadpeer run enforces would limit an attachment, too: it is left alone.
func TestAttachOverRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup, hooks := testCgroup(t), hookDir(t)
	m := newMaker(t, cgroup, w.server.Start)
	h := must(bpf.AttachHook(bpf.HookOptions{
		Dir: hooks, ID: runHook + "1", Cgroup: must(bpf.CgroupRoot())(t) + cgroup, Rules: []bpf.Rule{{Policy: minute(), Enforce: true}},
	}))(t)
	defer func() { ok(t, h.Remove()) }()
	w.open(Options{ProcRoot: procRoot(t, m.cmd.Process.Pid), HookDir: hooks})
	m.do("make", "1 40 5 4 0")
	a := w.attach(w.request(), keepalive.Policy{Idle: time.Hour, UserTimeout: -1})
	if a.ID != "" || a.Failed != 2 || a.Changed != 0 {
		t.Errorf("%+v", a)
	}
	for c := range a.Snapshot.All() {
		if !strings.Contains(c.Outcome.Error, "deadpeer run enforces") {
			t.Errorf("%+v", c.Outcome)
		}
	}
	nothingLeft(t, w.dir)
}

// What a socket had is known, too, when its program connects it once more: the
// policy has stayed on it meanwhile.
func TestDetachReconnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup := testCgroup(t)
	w.engine = New(Options{RuntimeDir: w.dir, HookDir: hookDir(t)})
	w.engine.cgroups = w.dir
	m := newMaker(t, cgroup, w.server.Start)
	must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute(), New: true, Cgroup: cgroup}}}))(t)
	m.do("make", "1 40 5 4 0")
	m.do("reconnect", "1 40 5 4 0")
	m.do("reconnect", "1 40 5 4 0")
	w.detach()
	m.do("show", "0 7200 75 9 0")
	nothingLeft(t, w.dir)
}

// A program that deadpeer run started has that policy, also where there is
// another for the cgroup above.
func TestRunBelowAttachNew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup, hooks := testCgroup(t), hookDir(t)
	below := cgroup + "/below"
	ok(t, os.Mkdir(folderOf(t, below), 0o755))
	t.Cleanup(func() { wait(t, "remove "+below, func() bool { return unix.Rmdir(folderOf(t, below)) == nil }) })
	w.engine = New(Options{RuntimeDir: w.dir, HookDir: hooks})
	w.engine.cgroups = w.dir
	m := newMaker(t, below, w.server.Start)
	long := keepalive.Policy{Idle: time.Hour, Interval: time.Minute, Probes: 9, UserTimeout: -1}
	must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: long, New: true, Cgroup: cgroup}}}))(t)
	m.do("make", "1 3600 60 9 0")
	h := must(bpf.AttachHook(bpf.HookOptions{
		Dir: hooks, ID: runHook + "1", Cgroup: folderOf(t, below), Rules: []bpf.Rule{{Policy: minute(), Enforce: true}},
	}))(t)
	m.do("make", "1 40 5 4 0")
	m.do("weaken", "1 40 5 4 0")
	if a := w.detach()[0]; a.Changed != 2 || a.Failed != 0 {
		t.Errorf("%+v", a)
	}
	m.do("show", "1 40 5 4 0")
	ok(t, h.Remove())
}

// Two policies for the same future connections are refused, be it for the same
// cgroup or one below the other, in one request or two: nobody could give back
// what such a connection had. For different ones they are not.
func TestAttachNewTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup := testCgroup(t)
	below := cgroup + "/below"
	ok(t, os.Mkdir(folderOf(t, below), 0o755))
	t.Cleanup(func() { ok(t, os.Remove(folderOf(t, below))) })
	w.open(Options{HookDir: hookDir(t)})
	rule := func(cgroup, words string) AttachRule {
		f := filter(t, words)
		return AttachRule{Filter: f, Future: f, Policy: minute(), New: true, Cgroup: cgroup}
	}
	attach := func(rules ...AttachRule) (*Attached, error) {
		return w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: rules})
	}
	var future *FutureError
	if _, err := attach(rule(cgroup, ""), rule(below, "dport = :7000")); !errors.As(err, &future) {
		t.Errorf("overlapping rules of two cgroups: %v", err)
	}
	if _, err := attach(rule(cgroup, "sport = :7000 and sport = :7001")); !errors.As(err, &future) {
		t.Errorf("a rule that no connection can fit: %v", err)
	}
	nothingLeft(t, w.dir)
	first := must(attach(rule(cgroup, "sport = :7000"), rule(below, "sport = :7001")))(t)
	for _, r := range []AttachRule{rule(cgroup, "sport = :7000 or sport = :7002"), rule(below, ""), rule(cgroup, "dst 10.0.0.0/8")} {
		if _, err := attach(r); err == nil || !strings.Contains(err.Error(), "deadpeer detach "+first.ID) {
			t.Errorf("%s, for which there is a policy: %v", r.Future, err)
		}
	}
	must(attach(rule(below, "sport = :7002")))(t)
	w.detach()
	nothingLeft(t, w.dir)
}

// Of the rules of one attachment that a connection fits, the first holds, that
// it is enforced or not as well.
func TestAttachNewFirstRule(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]bool{"enforced first": true, "enforced last": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cgroup := testCgroup(t)
			w.open(Options{HookDir: hookDir(t)})
			m := newMaker(t, cgroup, w.server.Start)
			long := keepalive.Policy{Idle: 300 * time.Second, Interval: 3 * time.Second, Probes: 3, UserTimeout: -1}
			f := filter(t, "sport = :7000 or dport = :7000")
			must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{
				{Filter: f, Future: f, Policy: minute(), New: true, Enforce: first, Cgroup: cgroup},
				{Policy: long, New: true, Enforce: !first, Cgroup: cgroup},
			}}))(t)
			m.do("make", "1 40 5 4 0")
			weakened := "0 1000 5 4 0"
			if first {
				weakened = "1 40 5 4 0"
			}
			m.do("weaken", weakened)
			if a := w.detach()[0]; a.Changed != 2 || a.Failed != 0 {
				t.Errorf("%+v", a)
			}
			m.do("show", "0 1000 75 9 0")
			nothingLeft(t, w.dir)
		})
	}
}

// A hook of which we cannot tell what connections had before, since another
// version made it, is not removed: they would keep the policy for ever.
func TestDetachOfAnotherVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup, hooks := testCgroup(t), hookDir(t)
	w.open(Options{HookDir: hooks})
	future := filter(t, "sport = :7000 or dport = :7000")
	a := must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{
		Filter: future, Future: future, Policy: minute(), New: true, Cgroup: cgroup,
	}}}))(t)
	m := newMaker(t, cgroup, w.server.Start)
	m.do("make", "1 40 5 4 0")
	label := must(ebpf.LoadPinnedMap(filepath.Join(hooks, hookID(a.ID, 0), "label"), nil))(t)
	defer func() { ok(t, label.Close()) }()
	var text []byte
	ok(t, label.Lookup(uint32(0), &text))
	other := bytes.Replace(text, []byte(`"version":`), []byte(`"version":1`), 1)[:len(text)]
	if bytes.Equal(text, other) {
		t.Fatalf("no version in %.200q", text)
	}
	ok(t, label.Put(uint32(0), other))
	if done, err := w.engine.Detach(t.Context()); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("%+v, %v; want an error that names the version", done, err)
	}
	ok(t, label.Put(uint32(0), text))
	if done := w.detach(); len(done) != 1 || done[0].Changed != 2 || done[0].Failed != 0 {
		t.Errorf("%+v", done)
	}
	m.do("show", "0 7200 75 9 0")
}

// Connections that are made while a hook is taken down are as they would be
// without it.
func TestDetachWhileConnecting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup := testCgroup(t)
	m := newMaker(t, cgroup, w.server.Start)
	w.open(Options{ProcRoot: procRoot(t, m.cmd.Process.Pid), HookDir: hookDir(t)})
	rule := AttachRule{Policy: minute(), New: true, Cgroup: cgroup, Filter: filter(t, "sport = :7000 or dport = :7000")}
	must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{rule}}))(t)
	m.do("make", "1 40 5 4 0")
	must(m.in.WriteString("flood\n"))(t)
	wait(t, "more connections", func() bool {
		list := must(w.engine.Attachments(t.Context()))(t)
		return list[0].Given > 20
	})
	w.detach()
	m.do("show", "0 7200 75 9 0") // after the flood
	m.done("show", "0 7200 75 9 0")
	nothingLeft(t, w.dir)
}

// A connection that was being made when it was listed gets the policy from the
// hook while others are being changed, and what it had before comes back.
func TestAttachWhileConnecting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup := testCgroup(t)
	_ = w.server.SetSysctl("net.ipv4.tcp_syn_linear_timeouts", "100") // a SYN a second, from Linux 6.5 on
	m := newMaker(t, cgroup, w.server.Start)
	m.do("make", "0 7200 75 9 0") // for there to be something to change
	var l net.Listener
	ok(t, w.far.Do(func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(w.toFar.IPv4(w.far), 0).String())
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	to := l.Addr().(*net.TCPAddr)
	m.do("dial "+to.IP.String()+" "+strconv.Itoa(to.Port), "0 7200 75 9 0") // who the peer is, is known from now on
	wait(t, "a connection", func() bool { c, err := l.Accept(); return err == nil && c.Close() == nil })
	ok(t, w.toFar.Cut())
	m.do("dial "+to.IP.String()+" "+strconv.Itoa(to.Port), "0 7200 75 9 0")
	established := false
	w.open(Options{ProcRoot: procRoot(t, m.cmd.Process.Pid), HookDir: hookDir(t), AttachStep: func(s attach.Step) {
		if established || s != attach.StepJournalled {
			return
		}
		ok(t, w.toFar.Heal())
		wait(t, "the policy of the hook", func() bool {
			must(m.in.WriteString("show\n"))(t)
			return must(m.out.ReadString('\n'))(t) == "1 40 5 4 0 | 1 40 5 4 0\n"
		})
		established = true
	}})
	must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute(), New: true, Cgroup: cgroup}}}))(t)
	if !established {
		t.Error("nothing else was changed")
	}
	m.do("show", "1 40 5 4 0")
	if a := w.detach()[0]; a.Failed != 0 {
		t.Errorf("%+v", a)
	}
	m.do("show", "0 7200 75 9 0")
	nothingLeft(t, w.dir)
}

// A connection that is being made while it is attached, and then gets the
// policy of a newer attachment's hook, has what it had before both back, in
// whichever order they are detached.
func TestDetachConnectingTwice(t *testing.T) {
	t.Parallel()
	for name, newestFirst := range map[string]bool{"the newest first": true, "the oldest first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cgroup := testCgroup(t)
			_ = w.server.SetSysctl("net.ipv4.tcp_syn_linear_timeouts", "100") // a SYN a second, from Linux 6.5 on
			m := newMaker(t, cgroup, w.server.Start)
			w.engine = New(Options{RuntimeDir: w.dir, ProcRoot: procRoot(t, m.cmd.Process.Pid), HookDir: hookDir(t)})
			w.engine.cgroups = w.dir
			var l net.Listener
			ok(t, w.far.Do(func() (err error) {
				l, err = net.Listen("tcp4", netip.AddrPortFrom(w.toFar.IPv4(w.far), 0).String())
				return err
			}))
			t.Cleanup(func() { _ = l.Close() })
			dial := fmt.Sprintf("dial %s %d", l.Addr().(*net.TCPAddr).IP, l.Addr().(*net.TCPAddr).Port)
			m.do(dial, "0 7200 75 9 0") // who the peer is, is known from now on
			wait(t, "a connection", func() bool { c, err := l.Accept(); return err == nil && c.Close() == nil })
			ok(t, w.toFar.Cut())
			m.do(dial, "0 7200 75 9 0")
			older := w.attach(w.request(), keepalive.Policy{Idle: time.Hour, Interval: time.Minute, Probes: 9, UserTimeout: -1})
			m.do("show", "1 3600 60 9 0")
			newer := must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute(), New: true, Cgroup: cgroup}}}))(t)
			m.do("show", "1 3600 60 9 0")
			ok(t, w.toFar.Heal())
			wait(t, "the policy of the hook", func() bool {
				must(m.in.WriteString("show\n"))(t)
				return must(m.out.ReadString('\n'))(t) == "1 40 5 4 0 | 1 40 5 4 0\n"
			})
			ids := []string{older.ID, newer.ID}
			if newestFirst {
				slices.Reverse(ids)
			}
			for _, id := range ids {
				must(w.engine.Detach(t.Context(), id))(t)
			}
			m.do("show", "0 7200 75 9 0")
			nothingLeft(t, w.dir)
		})
	}
}

// Without BPF future connections are refused with the way out, and nothing is
// done by halves.
func TestAttachNewWithoutBPF(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect("tcp4", w.near, 2)
	before := w.serverOptions()
	w.open(Options{ProcRoot: procRoot(t), NoBPF: true})
	rule := AttachRule{Policy: minute(), New: true}
	_, err := w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{rule}})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "without --new") {
		t.Errorf("got %v", err)
	}
	rule.Future = filter(t, "heard > 10m")
	var future *FutureError
	if _, err := w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{rule}}); !errors.As(err, &future) {
		t.Errorf("got %v", err)
	}
	w.unchanged(before)
	nothingLeft(t, w.dir)
	w.attach(w.request(), minute())
	w.detach()
	w.unchanged(before)
}
