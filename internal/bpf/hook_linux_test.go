package bpf

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/keepalive"
)

func policy(idle, interval time.Duration, probes int, timeout time.Duration) keepalive.Policy {
	return keepalive.Policy{Idle: idle, Interval: interval, Probes: probes, UserTimeout: timeout}
}

func port(a net.Addr) Ports {
	p := a.(*net.TCPAddr).AddrPort().Port()
	return Ports{p, p}
}

// dial connects to a listener on the server.
func (w *world) dial(l *net.TCPListener) pair {
	w.t.Helper()
	addr := w.link.IPv4(w.server)
	if l.Addr().(*net.TCPAddr).AddrPort().Addr().Is6() {
		addr = w.link.IPv6(w.server)
	}
	c := must(w.peer.Dial(w.t.Context(), "tcp", netip.AddrPortFrom(addr, port(l.Addr()).Low).String()))(w.t)
	s := must(l.AcceptTCP())(w.t)
	w.t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	return pair{c, s}
}

func (w *world) listen(network string) *net.TCPListener {
	w.t.Helper()
	l := must(w.server.Listen(w.t.Context(), network, map[string]string{"tcp4": "0.0.0.0:0", "tcp6": "[::]:0"}[network]))(w.t)
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

func attach(t *testing.T, o HookOptions) *Hook {
	t.Helper()
	o.Cgroup = needCgroup(t)
	if o.Dir == "" {
		o.Dir = mountBPFFS(t) + "/hooks"
	}
	h := must(AttachHook(o))(t)
	t.Cleanup(func() {
		if _, err := os.Stat(h.dir); err == nil {
			ok(t, h.Remove())
		}
	})
	return h
}

func given(p keepalive.Policy) keepalive.Settings {
	p.UserTimeout = max(p.UserTimeout, 0)
	return keepalive.Settings{KeepAlive: true, Policy: p}
}

// The first rule that fits gives new connections their policy before their
// programs have them, and what they had comes back, wherever it was kept.
func TestHook(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"places free": false, "places taken": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testHook(t, taken)
		})
	}
}

func testHook(t *testing.T, taken bool) {
	w := newWorld(t)
	four, six, other := w.listen("tcp4"), w.listen("tcp6"), w.listen("tcp4")
	setOpt(t, six, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1) // inherited
	setOpt(t, six, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 777)
	a, b := policy(60*time.Second, 10*time.Second, 3, -1), policy(20*time.Second, 5*time.Second, 4, time.Minute)
	c, d := policy(30*time.Second, time.Second, 127, 0), policy(9*time.Second, 9*time.Second, 9, -1)
	own4 := netip.PrefixFrom(w.link.IPv4(w.server), 24)
	rules := []Rule{
		{Local: port(four.Addr()), From: netip.MustParsePrefix("192.0.2.0/24"), Policy: d},           // fits nobody
		{Local: port(four.Addr()), From: netip.MustParsePrefix("::/0"), Policy: d},                   // nor this
		{Local: port(four.Addr()), Policy: a},                                                        // the server's ends
		{Peer: port(four.Addr()), From: own4, Policy: b},                                             // the clients' ends
		{Local: port(six.Addr()), From: netip.PrefixFrom(w.link.IPv6(w.peer), 128), Policy: c},       // the server's
		{Peer: port(six.Addr()), From: netip.PrefixFrom(w.link.IPv6(w.server), 64), Policy: b},       // the clients'
		{Local: port(four.Addr()), Peer: Ports{1, 65535}, From: netip.Prefix{}, Policy: c},           // too late
		{Local: Ports{port(other.Addr()).Low, port(other.Addr()).Low}, Peer: Ports{1, 1}, Policy: d}, // fits nobody
	}
	before := w.dial(four)
	h := attach(t, HookOptions{ID: "one", Rules: rules})
	if taken {
		n := h.maps.Places.MaxEntries()
		keys, places := make([]uint32, n), make([]hookPlace, n)
		for i := range keys {
			keys[i] = uint32(i)
			places[i].Kept = hookKept{Cookie: 1 << 60, Rule: MaxRules} // not listed
		}
		must(h.maps.Places.BatchUpdate(keys, places, nil))(t)
	}
	want := map[conn.ID]keepalive.Settings{} // what they had
	back := map[uint32]map[uint64]Change{}
	var ends []*net.TCPConn
	for range 20 {
		for _, x := range []struct {
			l              *net.TCPListener
			client, server keepalive.Settings
		}{{four, given(b), given(a)}, {six, given(b), given(c)}} {
			p := w.dial(x.l)
			if got := settingsOf(t, p.client); got != x.client {
				t.Errorf("client of %s: %+v, want %+v", x.l.Addr(), got, x.client)
			}
			if got := settingsOf(t, p.server); got != x.server {
				t.Errorf("server of %s: %+v, want %+v", x.l.Addr(), got, x.server)
			}
			inherited := settingsOf(t, before.server)
			if x.l == six {
				inherited.KeepAlive, inherited.Idle = true, 777*time.Second
			}
			want[conn.ID{NetNS: w.server.NS().Inode(), Cookie: cookieOf(t, p.server)}] = inherited
			want[conn.ID{NetNS: w.peer.NS().Inode(), Cookie: cookieOf(t, p.client)}] = settingsOf(t, before.client)
			ends = append(ends, p.client, p.server)
		}
	}
	if p := w.dial(other); settingsOf(t, p.server).KeepAlive || settingsOf(t, p.client).KeepAlive {
		t.Error("a connection that no rule fits was changed")
	}
	if settingsOf(t, before.server).KeepAlive {
		t.Error("a connection from before was changed")
	}
	ok(t, ends[0].Close()) // it is forgotten
	delete(want, conn.ID{NetNS: w.peer.NS().Inode(), Cookie: 0})
	if n := must(h.Counters())(t); n != (Counters{Applied: 80}) {
		t.Errorf("%+v", n)
	}
	got := map[conn.ID]keepalive.Settings{}
	ok(t, h.Changed(t.Context(), func(c Changed) error {
		got[c.ID] = c.Before.Settings
		if back[c.ID.NetNS] == nil {
			back[c.ID.NetNS] = map[uint64]Change{}
		}
		back[c.ID.NetNS][c.ID.Cookie] = Change{Op: Restore, Settings: c.Before.Settings}
		if g := c.Given; g != a && g != b && g != c2(rules) {
			t.Errorf("%s: given %+v", c.ID, g)
		}
		return nil
	}))
	stored := 0
	ok(t, listed(t.Context(), h, pinListStored, func(*hookKept) error {
		stored++
		return nil
	}))
	if taken != (stored > 0) {
		t.Errorf("%d of %d are stored with their sockets", stored, len(got))
	}
	if len(got) < len(want)-1 || len(got) > len(want) {
		t.Errorf("%d connections, want %d", len(got), len(want))
	}
	for id, s := range got {
		if want[id] != s {
			t.Errorf("%s: had %+v, want %+v", id, s, want[id])
		}
	}
	ok(t, h.Stop())
	if h.Active() || settingsOf(t, w.dial(four).server).KeepAlive {
		t.Error("goes on after Stop")
	}
	must(Apply(t.Context(), w.server.NS(), back[w.server.NS().Inode()]))(t)
	must(Apply(t.Context(), w.peer.NS(), back[w.peer.NS().Inode()]))(t)
	for i, e := range ends[1:] {
		ns := w.server.NS().Inode()
		if i%2 == 1 {
			ns = w.peer.NS().Inode()
		}
		if s := settingsOf(t, e); s != want[conn.ID{NetNS: ns, Cookie: cookieOf(t, e)}] {
			t.Errorf("%d: restored to %+v", i, s)
		}
	}
	ok(t, h.Remove())
	if _, err := os.Stat(h.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// c2 is the policy that the fifth rule gives.
func c2(rules []Rule) keepalive.Policy { return rules[4].Policy }

// A program's own user timeout that would make the policy fatal saves its
// connection from the policy.
func TestHookRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.listen("tcp4")
	setOpt(t, l, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 60_000)
	h := attach(t, HookOptions{ID: "refuses", Rules: []Rule{{Local: port(l.Addr()), Policy: policy(time.Minute, time.Second, 1, -1)}}})
	p := w.dial(l)
	if s := settingsOf(t, p.server); s.KeepAlive || s.UserTimeout != time.Minute {
		t.Errorf("%+v", s)
	}
	if n := must(h.Counters())(t); n != (Counters{Refused: 1}) {
		t.Errorf("%+v", n)
	}
	ok(t, h.Changed(t.Context(), func(c Changed) error {
		t.Errorf("changed: %+v", c)
		return nil
	}))
}

// A program cannot weaken the policy, does not notice, and may make it
// stricter. Its other options, and other connections, are as ever.
func TestHookEnforce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ours, free := w.listen("tcp4"), w.listen("tcp4")
	h := attach(t, HookOptions{ID: "enforce", Rules: []Rule{
		{Local: port(ours.Addr()), Policy: policy(60*time.Second, 10*time.Second, 3, -1), Enforce: true},
		{Peer: port(ours.Addr()), Policy: policy(60*time.Second, 10*time.Second, 3, 100*time.Second), Enforce: true},
	}})
	p, other := w.dial(ours), w.dial(free)
	type calls []struct {
		level, name, value, want int
		err                      error
	}
	const tcp, sol = unix.IPPROTO_TCP, unix.SOL_SOCKET
	for name, x := range map[string]struct {
		c     *net.TCPConn
		calls calls
	}{
		"free": {other.server, calls{
			{sol, unix.SO_KEEPALIVE, 1, 1, nil}, {sol, unix.SO_KEEPALIVE, 0, 0, nil}, {tcp, unix.TCP_KEEPIDLE, 5000, 5000, nil},
			{tcp, unix.TCP_KEEPCNT, 100, 100, nil}, {tcp, unix.TCP_USER_TIMEOUT, 1 << 30, 1 << 30, nil},
		}},
		"ours": {p.server, calls{
			{sol, unix.SO_KEEPALIVE, 0, 1, nil}, {sol, unix.SO_KEEPALIVE, 1, 1, nil},
			{tcp, unix.TCP_KEEPIDLE, 61, 60, nil}, {tcp, unix.TCP_KEEPIDLE, 5, 5, nil}, {tcp, unix.TCP_KEEPIDLE, 7200, 60, nil},
			{tcp, unix.TCP_KEEPIDLE, 0, 60, unix.EINVAL}, {tcp, unix.TCP_KEEPIDLE, 32768, 60, unix.EINVAL},
			{tcp, unix.TCP_KEEPINTVL, 75, 10, nil}, {tcp, unix.TCP_KEEPINTVL, 3, 3, nil}, {tcp, unix.TCP_KEEPINTVL, 99999, 3, unix.EINVAL},
			{tcp, unix.TCP_KEEPCNT, 9, 3, nil}, {tcp, unix.TCP_KEEPCNT, 2, 2, nil}, {tcp, unix.TCP_KEEPCNT, 128, 2, unix.EINVAL},
			// Longer than the policy takes: it would switch the count of probes off.
			{tcp, unix.TCP_USER_TIMEOUT, 90_001, 0, nil}, {tcp, unix.TCP_USER_TIMEOUT, 90_000, 90_000, nil}, {tcp, unix.TCP_USER_TIMEOUT, 0, 0, nil},
			{tcp, unix.TCP_NODELAY, 0, 0, nil}, {tcp, unix.TCP_NODELAY, 1, 1, nil}, {sol, unix.SO_REUSEADDR, 1, 1, nil},
		}},
		"user timeout": {p.client, calls{
			{tcp, unix.TCP_USER_TIMEOUT, 0, 100_000, nil}, {tcp, unix.TCP_USER_TIMEOUT, 100_001, 100_000, nil},
			{tcp, unix.TCP_USER_TIMEOUT, 95_000, 95_000, nil}, {tcp, unix.TCP_USER_TIMEOUT, -1, 95_000, unix.EINVAL},
		}},
	} {
		for i, call := range x.calls {
			control(t, x.c, func(fd int) {
				err := unix.SetsockoptInt(fd, call.level, call.name, call.value)
				if got := must(unix.GetsockoptInt(fd, call.level, call.name))(t); got != call.want || !errors.Is(err, call.err) {
					t.Errorf("%s, call %d, %+v: %d, %v", name, i, call, got, err)
				}
			})
		}
	}
	if n, want := must(h.Counters())(t), (Counters{Applied: 2, Limited: Limited{KeepAlive: 1, Idle: 2, Interval: 1, Probes: 1, UserTimeout: 3}}); n != want {
		t.Errorf("%+v, want %+v", n, want)
	}
	// The kernel shows programs a page of what is longer.
	for _, c := range []*net.TCPConn{p.server, other.server} {
		control(t, c, func(fd int) {
			long := make([]byte, 3*4096)
			long[0] = 1
			for _, o := range []struct{ level, name int }{{sol, unix.SO_KEEPALIVE}, {tcp, unix.TCP_NODELAY}, {tcp, unix.TCP_QUICKACK}} {
				if err := unix.SetsockoptString(fd, o.level, o.name, string(long)); err != nil {
					t.Errorf("long value of %d/%d: %v", o.level, o.name, err)
				}
			}
			short := []byte{1}
			if err := unix.SetsockoptString(fd, sol, unix.SO_KEEPALIVE, string(short)); !errors.Is(err, unix.EINVAL) {
				t.Errorf("short value: %v", err)
			}
		})
	}
	ok(t, h.Stop())
	setOpt(t, p.server, sol, unix.SO_KEEPALIVE, 0)
	if settingsOf(t, p.server).KeepAlive {
		t.Error("held to the policy after Stop")
	}
}

// Hooks stay when their process lets go of them, are found whole or damaged,
// and go without a trace.
func TestHooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.listen("tcp4")
	dir := filepath.Join(mountBPFFS(t), "hooks")
	list := func(want int) []*Hook {
		t.Helper()
		list := must(Hooks(dir))(t)
		for _, h := range list {
			t.Cleanup(func() { _ = h.Close() })
		}
		if len(list) != want {
			t.Fatalf("%d hooks, want %d", len(list), want)
		}
		return list
	}
	list(0)
	o := HookOptions{Dir: dir, ID: "a", Cgroup: needCgroup(t), Rules: []Rule{
		{Local: port(l.Addr()), From: netip.MustParsePrefix("10.0.0.0/8"), Policy: policy(time.Minute, time.Second, 3, -1), Enforce: true},
		{Peer: Ports{1, 2}, From: netip.MustParsePrefix("2001:db8::/32"), Policy: policy(time.Minute, time.Second, 3, time.Hour)},
	}}
	made := must(AttachHook(o))(t)
	ok(t, made.Close())
	if _, err := AttachHook(o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("same id again: %v", err)
	}
	h := list(1)[0]
	if h.Damaged != nil || !h.Active() || h.Label.Made.IsZero() {
		t.Errorf("%+v: active %v", h, h.Active())
	}
	h.Label.Made = time.Time{}
	if want := (Label{ID: "a", Cgroup: o.Cgroup, Rules: o.Rules}); !reflect.DeepEqual(h.Label, want) {
		t.Errorf("label %+v, want %+v", h.Label, want)
	}
	if s := settingsOf(t, w.dial(l).server); s != given(o.Rules[0].Policy) {
		t.Errorf("%+v", s)
	}

	// Killed while making one, and while removing one.
	ok(t, os.Mkdir(dir+"/b", 0o700))
	ok(t, os.Remove(h.dir+"/"+pinCounters))
	both := list(2)
	for _, h := range both {
		if h.Damaged == nil {
			t.Errorf("%+v", h)
		}
		if _, err := h.Counters(); err == nil {
			t.Error("counters of a damaged hook")
		}
		if err := h.Changed(t.Context(), func(Changed) error { return nil }); err == nil {
			t.Error("connections of a damaged hook")
		}
	}
	if !both[0].Active() || both[1].Active() {
		t.Errorf("active: %v, %v", both[0].Active(), both[1].Active())
	}
	for _, h := range both {
		ok(t, h.Remove())
	}
	list(0)
	if settingsOf(t, w.dial(l).server).KeepAlive {
		t.Error("goes on after Remove")
	}
	ok(t, os.Chmod(dir, 0o777))
	if _, err := Hooks(dir); !errors.Is(err, errNotOurs) {
		t.Errorf("folder that others may write to: %v", err)
	}
}

// A hook ends with its cgroup.
func TestHookCgroupGone(t *testing.T) {
	t.Parallel()
	sub := filepath.Join(needCgroup(t), "sub")
	ok(t, os.Mkdir(sub, 0o700))
	t.Cleanup(func() { _ = os.Remove(sub) })
	h := must(AttachHook(HookOptions{
		Dir: mountBPFFS(t) + "/hooks", ID: "gone", Cgroup: sub, Rules: []Rule{{Policy: policy(time.Minute, time.Second, 3, -1)}},
	}))(t)
	active := h.Active()
	if ok(t, os.Remove(sub)); !active {
		t.Error("not active")
	}
	for range 500 {
		if !h.Active() {
			break
		}
		time.Sleep(10 * time.Millisecond) // the kernel detaches from a work queue
	}
	if h.Active() {
		t.Error("still active")
	}
	ok(t, h.Remove())
}

// Where another's program admits none beside it, that is said, and no want of
// privilege.
func TestAttachHookBesideAnother(t *testing.T) {
	t.Parallel()
	sub := filepath.Join(needCgroup(t), "alone")
	ok(t, os.Mkdir(sub, 0o700))
	t.Cleanup(func() { _ = os.Remove(sub) })
	dir := must(os.Open(sub))(t)
	defer func() { _ = dir.Close() }()
	alone := must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(t)
	defer func() { _ = alone.Close() }()
	ok(t, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: alone, Attach: ebpf.AttachCGroupSockOps}))
	_, err := AttachHook(HookOptions{
		Dir: mountBPFFS(t) + "/hooks", ID: "second", Cgroup: sub, Rules: []Rule{{Policy: policy(time.Minute, time.Second, 3, -1)}},
	})
	if err == nil || errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "BPF_F_ALLOW_MULTI") {
		t.Errorf("got %v", err)
	}
}

func TestAttachHookRefused(t *testing.T) {
	t.Parallel()
	good := Rule{Policy: policy(time.Minute, time.Second, 3, -1)}
	with := func(change func(*Rule)) []Rule {
		r := good
		change(&r)
		return []Rule{r}
	}
	for name, o := range map[string]HookOptions{
		"no id":           {Rules: []Rule{good}},
		"id with a slash": {ID: "a/b", Rules: []Rule{good}},
		"id of dots":      {ID: "..", Rules: []Rule{good}},
		"no rules":        {ID: "a"},
		"too many rules":  {ID: "a", Rules: make([]Rule, MaxRules+1)},
		"no idle":         {ID: "a", Rules: with(func(r *Rule) { r.Policy.Idle = 0 })},
		"probes":          {ID: "a", Rules: with(func(r *Rule) { r.Policy.Probes = 128 })},
		"user timeout":    {ID: "a", Rules: with(func(r *Rule) { r.Policy.UserTimeout = time.Second })},
		"ports":           {ID: "a", Rules: with(func(r *Rule) { r.Local = Ports{2, 1} })},
		"mapped":          {ID: "a", Rules: with(func(r *Rule) { r.From = netip.MustParsePrefix("::ffff:10.0.0.0/104") })},
		"no cgroup":       {ID: "a", Rules: []Rule{good}, Cgroup: t.TempDir()},
		"cgroup missing":  {ID: "a", Rules: []Rule{good}, Cgroup: t.TempDir() + "/none"},
	} {
		if o.Cgroup == "" {
			o.Cgroup = "/"
		}
		o.Dir = t.TempDir()
		if h, err := AttachHook(o); err == nil {
			t.Errorf("%s: taken", name)
			ok(t, h.Remove())
		}
	}
	if unsafe.Sizeof(hookPlace{}) != 48 {
		t.Error("struct place has changed: raise keptVersion")
	}
	if _, err := (storedLabel{Label: Label{Cgroup: string(make([]byte, labelLen))}}).encode(); err == nil {
		t.Error("a label that is too long was taken")
	}
	if err := (&Hook{dir: t.TempDir()}).Changed(context.Background(), nil); err == nil {
		t.Error("connections of no hook")
	}
}

// A hook that follows its programs tells what they have set since, though it
// was limited or is what they have anyway, but not what we set; one that does
// not, what connections had when they were made.
func TestHookFollows(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct{ follow, enforce bool }{"enforced": {true, true}, "not enforced": {follow: true}, "not followed": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			l := w.listen("tcp4")
			given := policy(time.Minute, 2*time.Second, 3, -1)
			h := attach(t, HookOptions{ID: "follow", Follow: x.follow, Rules: []Rule{{Local: port(l.Addr()), Policy: given, Enforce: x.enforce}}})
			before := func(p pair) (s Settings) {
				ok(t, h.Changed(t.Context(), func(c Changed) error {
					if c.ID.Cookie == cookieOf(t, p.server) {
						s = c.Before
					}
					return nil
				}))
				return s
			}
			same, other, ours := w.dial(l), w.dial(l), w.dial(l)
			made := before(same)
			if made.KeepAlive || before(other) != made || before(ours) != made {
				t.Errorf("before any call: %+v", made)
			}
			setOpt(t, same.server, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			setOpt(t, same.server, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
			setOpt(t, other.server, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 3600)
			setOpt(t, other.server, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 99_000)
			control(t, other.server, func(fd int) {
				if unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 40_000) == nil {
					t.Error("an interval of 40000 s was taken")
				}
			})
			held.AsDeadpeer(func() { setOpt(t, ours.server, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 50) })
			want, wantOther := made, made
			if x.follow {
				want.KeepAlive, want.Probes, want.Own.Probes = true, 3, 3
				wantOther.Idle, wantOther.Own.Idle = time.Hour, time.Hour
				wantOther.UserTimeout, wantOther.Own.UserTimeout = 99*time.Second, 99*time.Second
			}
			if s := before(same); s != want {
				t.Errorf("the same: %+v, want %+v", s, want)
			}
			if s := before(other); s != wantOther {
				t.Errorf("another: %+v, want %+v", s, wantOther)
			}
			if s := before(ours); s != made {
				t.Errorf("ours: %+v, want %+v", s, made)
			}
			ok(t, h.Stop())
			setOpt(t, same.server, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
			if s := before(same); s != want {
				t.Errorf("after Stop: %+v, want %+v", s, want)
			}
		})
	}
}
