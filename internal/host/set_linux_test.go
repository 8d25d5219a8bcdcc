package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func lan() map[Part]int64 { return map[Part]int64{Idle: 30, Interval: 10, Probes: 5} }

func TestSetAndRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setSysctl("net.ipv4.tcp_keepalive_time", "7000")
	w.write("etc/sysctl.conf", "net.ipv4.tcp_keepalive_time = 7000\n")
	before := w.picture()
	plan := w.set(map[Part]int64{Idle: 30, Interval: 10, Probes: 5, Retries2: 8, SYNRetries: 3, OrphanRetries: 0})
	if len(plan.Lost) != 0 || len(plan.Live) != 6 {
		t.Errorf("plan %+v", plan)
	}
	// The one that procps reads last would win there.
	if len(plan.LostBy) != 1 || !strings.Contains(plan.LostBy[0].String(), "/etc/sysctl.conf:1, which sets 7000") {
		t.Errorf("lost by the other: %v", plan.LostBy)
	}
	for name, want := range map[string]string{
		"net.ipv4.tcp_keepalive_time": "30", "net.ipv4.tcp_keepalive_intvl": "10", "net.ipv4.tcp_keepalive_probes": "5",
		"net.ipv4.tcp_retries2": "8", "net.ipv4.tcp_syn_retries": "3", "net.ipv4.tcp_orphan_retries": "0", "net.ipv4.tcp_fin_timeout": "60",
	} {
		if got := w.sysctl(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	state, err := w.host().Show()
	ok(t, err)
	s, _ := state.Part(Idle)
	if s.Now() != 30 || s.Persisted == nil || s.Persisted.Value != 30 || s.Persisted.Where() != dropInPath+":2" || !s.Differs || state.Changed.IsZero() || state.Interrupted {
		t.Errorf("shown: %+v, changed %v", s, state.Changed)
	}
	// The second time keeps the first originals, and what it does not name.
	w.set(map[Part]int64{Idle: 20})
	b, err := os.ReadFile(filepath.Join(w.root, dropInPath))
	ok(t, err)
	for _, line := range []string{"net.ipv4.tcp_keepalive_time = 20\n", "net.ipv4.tcp_keepalive_probes = 5\n"} {
		if strings.Count(string(b), line) != 1 || strings.Count(string(b), "tcp_keepalive_time") != 1 {
			t.Errorf("file %q, want %q once", b, line)
		}
	}
	shown, err := w.host().PlanRestore()
	ok(t, err)
	u := w.restore()
	if len(u.Live) != 5 || len(shown.Live) != 5 || !u.File.Removed() || len(u.Left) != 0 {
		t.Errorf("restored %+v, planned %+v", u, shown)
	}
	w.as(before, "restored")
	w.noJournal("restored")
	if u := w.restore(); !u.Nothing {
		t.Errorf("restored again: %+v", u)
	}
}

// What was in the drop-in and how it lay there comes back, byte for byte.
func TestRestoreFile(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(w *world){
		"odd bytes": func(w *world) {
			w.write(dropInPath, "# ours\r\n\tnet/ipv4/tcp_keepalive_time=99\r\nvm.swappiness = 1\n-net.ipv4.tcp_keepalive_intvl\n\xff\x00no newline")
			ok(w.t, os.Chmod(filepath.Join(w.root, dropInPath), 0o640))
		},
		"empty":     func(w *world) { w.write(dropInPath, "") },
		"no folder": func(w *world) { ok(w.t, os.Remove(filepath.Join(w.root, "etc/sysctl.d"))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			prepare(w)
			before := w.picture()
			if plan := w.set(lan()); len(plan.Lost) != 0 {
				t.Errorf("lost %v", plan.Lost)
			}
			w.restore()
			w.as(before, name)
			w.noJournal(name)
		})
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.picture()
	plan, err := w.host().Plan(Change{Values: lan()})
	ok(t, err)
	if plan.File == nil || !strings.Contains(string(plan.File.After), "net.ipv4.tcp_keepalive_time = 30\n") || *plan.Live[0].From != 7200 {
		t.Errorf("plan %+v", plan)
	}
	w.as(before, "planned")
	w.noJournal("planned")
	if _, err := os.Stat(w.state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("state folder: %v", err)
	}
}

func TestLiveOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.picture()
	plan, err := w.host().Set(t.Context(), Change{Values: lan(), LiveOnly: true})
	ok(t, err)
	if plan.File != nil || len(plan.Lost) != 0 {
		t.Errorf("plan %+v", plan)
	}
	changed := w.picture()
	if changed["net.ipv4.tcp_keepalive_time"] != "30" || len(changed) != len(before) {
		t.Errorf("%v", changed)
	}
	w.restore()
	w.as(before, "restored")

	// In a namespace that the files are not for, there is no other way.
	other := w.host(func(o *Options) { o.Netns.Boot = false })
	plan, err = other.Set(t.Context(), Change{Values: lan()})
	ok(t, err)
	if plan.File != nil || len(plan.Lost) != 3 || !strings.Contains(plan.Lost[0].String(), "will not outlast") {
		t.Errorf("plan %+v", plan)
	}
	_, err = other.Restore(t.Context())
	ok(t, err)
	w.as(before, "restored")
	w.noJournal("another namespace")
}

func TestLosesAtBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("etc/sysctl.d/99-tuning.conf", "# theirs\nnet.ipv4.tcp_keepalive_time = 600\nnet.ipv4.tcp_keepalive_probes = 5\n")
	plan := w.set(lan())
	if len(plan.Lost) != 1 || len(plan.LostBy) != 1 {
		t.Fatalf("lost %v", plan.Lost)
	}
	want := "net.ipv4.tcp_keepalive_time = 30 loses at boot (systemd-sysctl) to /etc/sysctl.d/99-tuning.conf:2, which sets 600: change that line"
	if got := plan.Lost[0].String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if w.sysctl("net.ipv4.tcp_keepalive_time") != "30" {
		t.Error("not in force")
	}
}

// What somebody else has changed since is theirs.
func TestChangedSince(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.set(lan())
	w.setSysctl("net.ipv4.tcp_keepalive_time", "33")
	full := filepath.Join(w.root, dropInPath)
	ok(t, os.WriteFile(full, []byte("mine = 1\n"), 0o644))
	if _, err := w.host().Set(t.Context(), Change{Values: lan()}); err == nil || !strings.Contains(err.Error(), "was changed since") {
		t.Errorf("set over an edited file: %v", err)
	}
	u := w.restore()
	if len(u.Left) != 2 || len(u.Live) != 2 || w.sysctl("net.ipv4.tcp_keepalive_time") != "33" || w.sysctl("net.ipv4.tcp_keepalive_intvl") != "75" {
		t.Errorf("restored %+v", u)
	}
	if b, err := os.ReadFile(full); err != nil || string(b) != "mine = 1\n" {
		t.Errorf("file %q, %v", b, err)
	}
}

// After a reboot the values are those of the files without ours.
func TestRestoreAfterReboot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("etc/sysctl.d/10-theirs.conf", "net.ipv4.tcp_keepalive_intvl = 40\n")
	w.setSysctl("net.ipv4.tcp_keepalive_time", "5000") // by hand: a reboot ends it
	w.setSysctl("net.ipv4.tcp_keepalive_intvl", "40")
	w.set(lan())
	h := w.host()
	rec, err := h.load()
	ok(t, err)
	rec.Boot = "another"
	ok(t, rec.store(h.journal()))
	w.setSysctl("net.ipv4.tcp_keepalive_probes", "7") // by a later tool
	if u := w.restore(); len(u.Left) != 0 || len(u.Live) != 2 {
		t.Errorf("restored %+v", u)
	}
	for name, want := range map[string]string{"net.ipv4.tcp_keepalive_time": "7200", "net.ipv4.tcp_keepalive_intvl": "40", "net.ipv4.tcp_keepalive_probes": "7"} {
		if got := w.sysctl(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// A set after a reboot takes what the files say without ours for the original.
func TestSetAfterReboot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setSysctl("net.ipv4.tcp_keepalive_time", "5000") // by hand
	files := w.picture()
	w.set(lan())
	h := w.host()
	rec, err := h.load()
	ok(t, err)
	rec.Boot = "another"
	ok(t, rec.store(h.journal()))
	w.setSysctl("net.ipv4.tcp_retries2", "11") // by hand, in this boot
	w.set(map[Part]int64{Idle: 20, Retries2: 8})
	w.restore()
	files["net.ipv4.tcp_keepalive_time"], files["net.ipv4.tcp_retries2"] = "7200", "11"
	w.as(files, "restored")

	// The journal of a namespace that is gone says nothing of another one with
	// its number.
	other := w.host(func(o *Options) { o.Netns.Boot = false })
	_, err = other.Set(t.Context(), Change{Values: lan()})
	ok(t, err)
	next := w.host(func(o *Options) { o.Netns.Boot, o.Netns.Cookie = false, 7 })
	w.setSysctl("net.ipv4.tcp_keepalive_time", "4000")
	_, err = next.Set(t.Context(), Change{Values: map[Part]int64{Idle: 50}})
	ok(t, err)
	_, err = next.Restore(t.Context())
	ok(t, err)
	if got := w.sysctl("net.ipv4.tcp_keepalive_time"); got != "4000" {
		t.Errorf("idle time %s, want 4000", got)
	}
}

// What fails midway is undone at once.
func TestFailsMidway(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		w := newWorld(t)
		original := w.picture()
		if again {
			w.set(map[Part]int64{Idle: 500, Interval: 50})
		}
		before := w.picture()
		h := w.host()
		h.sys = &failing{system: h.sys, at: "net.ipv4.tcp_keepalive_probes"}
		_, err := h.Set(t.Context(), Change{Values: lan()})
		if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "everything was put back") {
			t.Errorf("got %v", err)
		}
		w.as(before, "undone")
		w.restore()
		w.as(original, "restored")
		w.noJournal("restored")
	}
}

// failing is a system that cannot set one value, which the checks did not see.
type failing struct {
	system
	at string
}

func (f *failing) set(name, value string) error {
	if name == f.at {
		return unix.EIO
	}
	return f.system.set(name, value)
}
