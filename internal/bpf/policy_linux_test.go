package bpf

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

func settingsOf(t *testing.T, c *net.TCPConn) keepalive.Settings {
	t.Helper()
	return must(keepalive.Get(c))(t)
}

// Apply makes changes with a program of its own.
func Apply(ctx context.Context, ns *netns.NS, changes map[uint64]Change) (map[uint64]Result, error) {
	c, err := OpenChanger(len(changes)/3 + 1) // several walks
	if err != nil {
		return nil, err
	}
	var targets []Target
	for cookie, change := range changes {
		targets = append(targets, Target{cookie, change})
	}
	results := map[uint64]Result{}
	err = c.Apply(ctx, ns, targets, func(i int, r Result) { results[targets[i].Cookie] = r })
	return results, errors.Join(err, c.Close())
}

// apply makes one change to each of the connections.
func apply(t *testing.T, ns *netns.NS, change Change, list ...*net.TCPConn) map[uint64]Result {
	t.Helper()
	changes := map[uint64]Change{}
	for _, c := range list {
		changes[cookieOf(t, c)] = change
	}
	return must(Apply(t.Context(), ns, changes))(t)
}

// Apply gives the same as package keepalive does by the descriptor, on sockets
// of every kind, and restores what it changed. Others stay as they are.
func TestApply(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ns := w.ns()
	pairs := append(w.connect("tcp4", 100), w.connect("tcp6", 100)...)
	random := rand.New(rand.NewPCG(3, 4))
	policies := []keepalive.Settings{
		{KeepAlive: true, Policy: keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 3, UserTimeout: -1}},
		{KeepAlive: true, Policy: keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 3, UserTimeout: 90 * time.Second}},
		{KeepAlive: true, Policy: keepalive.Policy{Idle: 30 * time.Second}},
		{KeepAlive: true, Policy: keepalive.Policy{Interval: 1500 * time.Millisecond, UserTimeout: -1}},
		{KeepAlive: true, Policy: keepalive.Policy{Probes: 127, UserTimeout: 300 * time.Hour}},
	}
	changes := map[uint64]Change{}
	before := map[*net.TCPConn]keepalive.Settings{}
	for i, p := range pairs {
		for _, c := range []*net.TCPConn{p.client, p.server} { // the client does as it is done to the server
			setOpt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE, i&1)
		}
		if i&2 != 0 {
			idle, count := 1+random.IntN(32767), 1+random.IntN(127)
			for _, c := range []*net.TCPConn{p.client, p.server} {
				setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle)
				setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count)
			}
		}
		if i&4 != 0 {
			timeout := random.IntN(100_000_000)
			for _, c := range []*net.TCPConn{p.client, p.server} {
				setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, timeout)
			}
		}
		before[p.server] = settingsOf(t, p.server)
		if i%10 != 9 {
			changes[cookieOf(t, p.server)] = Change{Op: Set, Settings: policies[i%len(policies)]}
		}
	}
	results := must(Apply(t.Context(), ns, changes))(t)
	back := map[uint64]Change{}
	for i, p := range pairs {
		cookie := cookieOf(t, p.server)
		r := results[cookie]
		if i%10 == 9 {
			if s := settingsOf(t, p.server); s != before[p.server] || r.Found {
				t.Errorf("%d: not chosen: %+v, was %+v; %+v", i, s, before[p.server], r)
			}
			continue
		}
		if !r.Found || r.Before.Settings != before[p.server] {
			t.Errorf("%d: %+v, before %+v", i, r, before[p.server])
		}
		back[cookie] = Change{Op: Restore, Settings: r.Before.Settings}
		err := keepalive.Set(p.client, policies[i%len(policies)].Policy)
		if _, refused := errors.AsType[*keepalive.PolicyError](err); refused {
			if _, refused := errors.AsType[*keepalive.PolicyError](r.Err); !refused || settingsOf(t, p.server) != before[p.server] {
				t.Errorf("%d: by descriptor %v, by BPF %v", i, err, r.Err)
			}
			continue
		}
		ok(t, err)
		if got, want := settingsOf(t, p.server), settingsOf(t, p.client); got != want || r.Err != nil {
			t.Errorf("%d: %+v, want %+v; %v", i, got, want, r.Err)
		}
	}
	for _, r := range must(Apply(t.Context(), ns, back))(t) {
		if !r.Found || r.Err != nil {
			t.Errorf("restore: %+v", r)
		}
	}
	for i, p := range pairs {
		if s := settingsOf(t, p.server); s != before[p.server] {
			t.Errorf("%d: restored to %+v, was %+v", i, s, before[p.server])
		}
	}
	// What differs by nothing stays the host's.
	for cookie, r := range must(Apply(t.Context(), ns, map[uint64]Change{cookieOf(t, pairs[0].server): {}}))(t) {
		if r.Before.Settings != before[pairs[0].server] {
			t.Errorf("look at %d: %+v", cookie, r)
		}
	}
}

// A socket that is not as it is said to be is left alone.
func TestApplyConditional(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.connect("tcp4", 1)[0].server
	setOpt(t, p, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 100_000)
	setOpt(t, p, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 33)
	was := settingsOf(t, p)
	change := Change{
		Op: Set, Conditional: true, Was: was,
		Settings: keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 3, UserTimeout: -1}},
	}
	for name, alter := range map[string]func(*keepalive.Settings){
		"keepalive":    func(s *keepalive.Settings) { s.KeepAlive = true },
		"idle":         func(s *keepalive.Settings) { s.Idle += time.Second },
		"interval":     func(s *keepalive.Settings) { s.Interval = 75 * time.Second },
		"probes":       func(s *keepalive.Settings) { s.Probes-- },
		"user timeout": func(s *keepalive.Settings) { s.UserTimeout = 0 },
	} {
		other := change
		alter(&other.Was)
		if r := apply(t, w.ns(), other, p)[cookieOf(t, p)]; !errors.Is(r.Err, ErrDiffers) || r.Before.Settings != was || settingsOf(t, p) != was {
			t.Errorf("another %s: %+v, %+v", name, r, settingsOf(t, p))
		}
	}
	if r := apply(t, w.ns(), change, p)[cookieOf(t, p)]; r.Err != nil || settingsOf(t, p).Idle != time.Minute {
		t.Errorf("the same: %+v, %+v", r, settingsOf(t, p))
	}
}

// Cookies that want the same place in the table have others, or come later.
func TestChangerCrowded(t *testing.T) {
	t.Parallel()
	needBPF(t)
	c := must(OpenChanger(500))(t)
	defer func() { ok(t, c.Close()) }()
	var targets []Target
	for cookie := uint64(1); len(targets) < 200; cookie++ {
		if uint32(cookie/16*0x9e3779b97f4a7c15>>32)*16&uint32(len(c.table)-1) == 0 {
			targets = append(targets, Target{Cookie: cookie})
		}
	}
	var all []int
	for i := range targets {
		all = append(all, i)
	}
	crowded := must(c.fill(targets, all))(t)
	if len(crowded) == 0 || len(crowded) > 150 {
		t.Errorf("%d of %d are crowded out", len(crowded), len(targets))
	}
	reported := map[int]bool{}
	ok(t, c.Apply(t.Context(), must(netns.Current())(t), targets, func(i int, _ Result) { reported[i] = true }))
	if len(reported) != len(targets) {
		t.Errorf("%d of %d were reported", len(reported), len(targets))
	}
}

// A socket of another namespace, one that is gone, and a bad change are told.
func TestApplyRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.connect("tcp4", 3)
	policy := Change{Op: Set, Settings: keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: 60 * time.Second}}}
	elsewhere, gone := cookieOf(t, p[0].client), cookieOf(t, p[1].server)
	was := settingsOf(t, p[0].client)
	ok(t, p[1].server.SetLinger(0))
	ok(t, p[1].server.Close())
	bad := policy
	bad.Settings.Probes = 128
	results := must(Apply(t.Context(), w.ns(), map[uint64]Change{elsewhere: policy, gone: policy, cookieOf(t, p[2].server): bad}))(t)
	var refused *keepalive.PolicyError
	if r := results[cookieOf(t, p[2].server)]; !errors.As(r.Err, &refused) {
		t.Errorf("bad policy: %+v", r)
	}
	if results[elsewhere].Found || results[gone].Found || settingsOf(t, p[0].client) != was {
		t.Errorf("%+v", results)
	}
	for _, bad := range []Change{{Op: 3}, {Op: Restore, Settings: keepalive.Settings{Policy: keepalive.Policy{Probes: 256}}}} {
		if r := apply(t, w.ns(), bad, p[2].server)[cookieOf(t, p[2].server)]; r.Err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Apply(ctx, w.ns(), map[uint64]Change{gone: {}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := must(Apply(t.Context(), w.ns(), nil))(t); !maps.Equal(got, map[uint64]Result{}) {
		t.Errorf("nothing to do: %+v", got)
	}
}

// Probes are unanswered already, more than the policy allows: the connection
// gets a whole idle time, in which something comes from the peer.
func TestApplyWhileProbing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.connect("tcp4", 2)
	var servers []*net.TCPConn
	for _, c := range p {
		servers = append(servers, c.server)
		ok(t, keepalive.Set(c.server, keepalive.Policy{Idle: time.Second, Interval: time.Second, Probes: 20}))
	}
	ok(t, w.link.Cut())
	deadline := time.Now().Add(30 * time.Second)
	for _, c := range servers {
		for probes := uint8(0); probes < 5; time.Sleep(10 * time.Millisecond) {
			control(t, c, func(fd int) {
				probes = must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO))(t).Probes
			})
			if time.Now().After(deadline) {
				t.Fatal("no probes")
			}
		}
	}
	const idle = 5 * time.Second // over already
	harsh := Change{Op: Set, Settings: keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: idle, Interval: time.Second, Probes: 1}}}
	start := time.Now()
	for cookie, r := range apply(t, w.ns(), harsh, servers...) {
		if !r.Found || r.Err != nil {
			t.Errorf("%d: %+v", cookie, r)
		}
	}
	time.Sleep(300 * time.Millisecond) // many ticks
	ok(t, w.link.Heal())
	for _, c := range p {
		must(c.client.Write([]byte("x")))(t)
		ok(t, c.server.SetReadDeadline(time.Now().Add(20*time.Second)))
		if _, err := c.server.Read(make([]byte, 1)); err != nil {
			t.Errorf("%v, %s after the change", err, time.Since(start))
		}
	}
}
