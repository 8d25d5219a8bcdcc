package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/host"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/journal"
	"deadpeer/internal/probe"
	"deadpeer/internal/sockdiag"
	"deadpeer/keepalive"
)

// tuned is a world whose server's connections have keepalive on by the
// host's values, 7200 s as ever.
func tuned(t *testing.T, far int) (w *world, peers []netip.AddrPort) {
	t.Helper()
	w = newWorld(t)
	peers = w.connect("tcp4", w.far, far)
	for _, p := range peers {
		setOpt(t, w.servers[p], unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	}
	w.tuner(t)
	return w, peers
}

// tuner gives the world an engine with a state folder and a root of its own.
func (w *world) tuner(t *testing.T, change ...func(*Options)) {
	t.Helper()
	dir := t.TempDir()
	ok(t, os.MkdirAll(filepath.Join(dir, "root/etc/sysctl.d"), 0o755))
	o := Options{RuntimeDir: w.dir, ProcRoot: procRoot(t), StateDir: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root")}
	for _, c := range change {
		c(&o)
	}
	w.engine = New(o)
	w.engine.cgroups = w.dir
}

func (w *world) tune(existing bool, values map[host.Part]int64) Tuned {
	w.t.Helper()
	r := TuneRequest{Netns: w.nsPath(), Existing: existing, Change: TuneChange{Values: values}}
	return must(w.engine.Tune(w.t.Context(), r))(w.t)
}

// timers are the keepalive timers of the server's sockets.
func (w *world) timers() map[netip.AddrPort]time.Duration {
	w.t.Helper()
	d := must(sockdiag.Open(w.server.NS()))(w.t)
	defer func() { ok(w.t, d.Close()) }()
	m := map[netip.AddrPort]time.Duration{}
	ok(w.t, d.Dump(w.t.Context(), sockdiag.Query{}, func(s *conn.Sock, _ *sockdiag.Memory) error {
		if s.Timer == conn.TimerKeepalive {
			m[unmap(s.Peer())] = time.Duration(s.TimerMS) * time.Millisecond
		}
		return nil
	}))
	return m
}

func fast() map[host.Part]int64 {
	return map[host.Part]int64{host.Idle: 3, host.Interval: 1, host.Probes: 3}
}

// Connections that are open when the host is tuned are given up by the new
// values where they were re-armed, and not where they were not. The living
// live on, and restore leaves the host as it was.
func TestTuneExisting(t *testing.T) {
	t.Parallel()
	for _, existing := range []bool{true, false} {
		t.Run(fmt.Sprint("existing ", existing), func(t *testing.T) {
			t.Parallel()
			w, peers := tuned(t, 3)
			near := w.connect("tcp4", w.near, 2)
			for _, p := range near {
				setOpt(t, w.servers[p], unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			}
			before := w.serverOptions()
			ok(t, w.toFar.Cut())
			began := time.Now()
			got := w.tune(existing, fast())
			if got.Existing.Old != 5 || existing != (got.Existing.Rearmed == 5) || len(got.Existing.Left) != 0 || got.Existing.Unseen != 0 {
				t.Errorf("%+v", got.Existing)
			}
			f := must(forecast.For(forecast.SituationIdle, forecast.Input{
				KeepAlive: true, Policy: keepalive.Policy{Idle: 3 * time.Second, Interval: time.Second, Probes: 3}, HZ: jiffies.HZ(),
			}))(t)
			patience := f.Latest + 20*time.Second // on a machine that is busy
			gone := func(p netip.AddrPort) bool {
				errno := 0
				control(t, w.servers[p], func(fd int) { errno = must(unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR))(t) })
				if errno != 0 && unix.Errno(errno) != unix.ETIMEDOUT {
					t.Errorf("%s: %v", p, unix.Errno(errno))
				}
				return errno != 0
			}
			if existing {
				for _, p := range peers {
					for !gone(p) {
						if time.Since(began) > patience {
							t.Fatalf("%s not given up in %v", p, patience)
						}
						time.Sleep(20 * time.Millisecond)
					}
					if d := time.Since(began); d < f.Earliest {
						t.Errorf("%s given up after %v, before its time", p, d)
					}
				}
			} else {
				time.Sleep(f.Latest + 2*time.Second)
				if slices.ContainsFunc(peers, gone) {
					t.Error("given up though its timer was not re-armed")
				}
			}
			if slices.ContainsFunc(near, gone) {
				t.Error("a living connection was given up")
			}
			must(w.engine.Untune(t.Context(), TuneRequest{Netns: w.nsPath()}))(t)
			if u := must(w.engine.Untune(t.Context(), TuneRequest{Netns: w.nsPath()}))(t); !u.Nothing {
				t.Errorf("restored twice: %+v", u)
			}
			for _, p := range near { // they follow the host again
				if o := optionsOf(t, w.servers[p]); o != before[p] {
					t.Errorf("%s: options %+v, were %+v", p, o, before[p])
				}
			}
			nothingLeft(t, w.dir)
		})
	}
}

// Which connections keep their old expiry, and why some are not re-armed.
func TestTuneCounts(t *testing.T) {
	t.Parallel()
	w, peers := tuned(t, 8)
	set := func(i, level, name, value int) { setOpt(t, w.servers[peers[i]], level, name, value) }
	set(0, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)         // off
	set(1, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 900)      // its own
	set(2, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5)        // its own, and short already
	set(3, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60)       // its own, and by chance the new one
	set(4, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5000) // over at the first probe
	set(5, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 3)       // idle time is the host's
	before := w.serverOptions()
	r := TuneRequest{Netns: w.nsPath(), Existing: true, DryRun: true, Change: TuneChange{Values: map[host.Part]int64{host.Idle: 60}}}
	planned := must(w.engine.Tune(t.Context(), r))(t)
	if planned.Existing.Old != 4 || planned.Existing.Rearmed != 0 {
		t.Errorf("planned: %+v", planned.Existing)
	}
	w.unchanged(before)
	got := w.tune(true, map[host.Part]int64{host.Idle: 60})
	why := probe.UserTimeoutSet.Error()
	if x := got.Existing; x.Old != 4 || x.Rearmed != 3 || len(x.Left) != 1 || x.Left[why] != 1 {
		t.Errorf("%+v", got.Existing)
	}
	timers := w.timers()
	for i, longest := range []time.Duration{0, 900, 5, 60, 7200, 60, 60, 60} {
		longest *= time.Second
		if d := timers[peers[i]]; d > longest || longest > 60*time.Second && d <= 60*time.Second || longest > 0 && d == 0 {
			t.Errorf("connection %d: timer in %v, want at most %v", i, d, longest)
		}
	}
	again := w.tune(true, map[host.Part]int64{host.Idle: 60})
	if again.Existing.Old != 1 || again.Existing.Rearmed != 0 {
		t.Errorf("again: %+v", again.Existing)
	}
	must(w.engine.Untune(t.Context(), TuneRequest{Netns: w.nsPath()}))(t)
	w.unchanged(before)
}

// A connection in the middle of probing is left to it: its count of
// unanswered probes would stay, and be over a lower limit at the next look.
func TestTuneLeavesProbed(t *testing.T) {
	t.Parallel()
	w, peers := tuned(t, 1)
	ok(t, w.server.SetSysctl("net.ipv4.tcp_keepalive_intvl", "40"))
	setOpt(t, w.servers[peers[0]], unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	ok(t, w.server.SetSysctl("net.ipv4.tcp_keepalive_time", "1"))
	ok(t, w.toFar.Cut())
	setOpt(t, w.servers[peers[0]], unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	wait(t, "first probe", func() bool { return w.timers()[peers[0]] > 20*time.Second })
	got := w.tune(true, map[host.Part]int64{host.Idle: 10, host.Probes: 1})
	if got.Existing.Old != 1 || got.Existing.Left[probe.Probing.Error()] != 1 {
		t.Errorf("%+v", got.Existing)
	}
}

// A deadpeer is killed at every step of re-arming, and the next one switches
// keepalive on again.
func TestTuneKilled(t *testing.T) {
	t.Parallel()
	w, peers := tuned(t, 3)
	before := w.serverOptions()
	idle := int64(5000)
	for _, step := range []probe.Step{probe.StepJournalled, probe.StepOff, probe.StepRestored, probe.StepForgotten} {
		idle -= 500 // so that there is something to re-arm each time
		killed(t, w.child(role{Do: "tune", KillAt: step, KillNth: map[bool]int{true: 1}[step == probe.StepOff], Idle: idle, State: t.TempDir()}))
		off := 0
		for _, p := range peers {
			if optionsOf(t, w.servers[p]).keepalive == 0 {
				off++
			}
		}
		if want := map[bool]int{true: 1}[step == probe.StepOff]; off != want {
			t.Errorf("killed when %s: %d switched off, want %d", step, off, want)
		}
		if left, err := journal.Orphans(w.dir); err != nil || step != probe.StepForgotten && len(left) != 1 {
			t.Errorf("killed when %s: journals %v, %v", step, left, err)
		} else {
			for _, o := range left {
				ok(t, o.Close())
			}
		}
		must(w.engine.Clean(t.Context()))(t)
		for _, p := range peers {
			if optionsOf(t, w.servers[p]).keepalive != 1 {
				t.Errorf("killed when %s: %s stays switched off", step, p)
			}
		}
		nothingLeft(t, w.dir)
	}
	ok(t, w.server.SetSysctl("net.ipv4.tcp_keepalive_time", "7200"))
	w.unchanged(before)
}

// Doctor tells of a change of the host that was killed, and of a journal that
// cannot be read.
func TestTuneDiagnosed(t *testing.T) {
	t.Parallel()
	w, _ := tuned(t, 0)
	finding := func() (found Finding) {
		for _, f := range w.engine.Diagnose() {
			if f.What == "keepalive defaults of this host" {
				found = f
			}
		}
		return found
	}
	if f := finding(); !f.OK || f.Detail != "not changed by deadpeer" {
		t.Errorf("%+v", f)
	}
	drop := filepath.Join(w.engine.options.Root, "etc/sysctl.d/90-deadpeer.conf")
	ok(t, os.WriteFile(drop, []byte("# Written by deadpeer tune set. deadpeer tune restore puts back what was here before.\nnet.ipv4.tcp_keepalive_time = 60\n"), 0o644))
	if f := finding(); !f.OK || !strings.HasSuffix(f.Detail, "at boot it sets net.ipv4.tcp_keepalive_time = 60") || f.Mend != "rm /etc/sysctl.d/90-deadpeer.conf" {
		t.Errorf("a file without a record: %+v", f)
	}
	dir := w.engine.options.StateDir
	ok(t, os.Mkdir(dir, 0o700))
	for content, want := range map[string]string{
		`{"version":1,"at":"2026-01-02T15:04:05Z","before":{}}`:   "killed half way",
		`{"version":1,"at":"2026-01-02T15:04:05Z","before":null}`: "changed by deadpeer since 2026-01-02T15:04:05Z",
		`{"version":1,`: "read journal",
	} {
		ok(t, os.WriteFile(filepath.Join(dir, "host.json"), []byte(content), 0o600))
		if f := finding(); !strings.Contains(f.Detail, want) || f.OK != strings.HasPrefix(want, "changed") {
			t.Errorf("%s: %+v", content, f)
		}
	}
}

func TestTuneNamespace(t *testing.T) {
	t.Parallel()
	w, _ := tuned(t, 1)
	_, err := w.engine.Tuning(t.Context(), TuneRequest{Netns: "all"})
	if err == nil || !strings.Contains(err.Error(), "all is not one") {
		t.Errorf("all: %v", err)
	}
	if _, err := w.engine.Tuning(t.Context(), TuneRequest{Netns: "/none"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	state := must(w.engine.Tuning(t.Context(), TuneRequest{Netns: w.nsPath()}))(t)
	if state.NoFile == "" {
		t.Error("the host's files are said to be for another namespace")
	}
	if state := must(w.engine.Tuning(t.Context(), TuneRequest{}))(t); state.NoFile != "" {
		t.Errorf("the host's own: %s", state.NoFile)
	}
}
