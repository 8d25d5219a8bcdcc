package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// hookLoop attaches with hooks and detaches, over and over, and says so.
func (r role) hookLoop(ctx context.Context) error {
	e := New(Options{RuntimeDir: r.Dir, ProcRoot: r.Proc, HookDir: r.Hooks})
	for {
		if _, err := e.Attach(ctx, AttachRequest{Request: Request{Netns: r.Netns}, Rules: []AttachRule{
			{Policy: minute(), New: true, Cgroup: r.Cgroup}, {Policy: minute(), New: true, Enforce: true, Cgroup: r.Cgroup},
		}}); err != nil {
			return err
		}
		if _, err := e.Detach(ctx); err != nil {
			return err
		}
		fmt.Println("round")
	}
}

func folderOf(t *testing.T, cgroup string) string { return must(bpf.CgroupRoot())(t) + cgroup }

// lineReader starts a child and gives what reads its lines.
func lineReader(t *testing.T, cmd *exec.Cmd) func(want string) {
	t.Helper()
	out := bufio.NewReader(must(cmd.StdoutPipe())(t))
	ok(t, cmd.Start())
	return func(want string) {
		t.Helper()
		if line := must(out.ReadString('\n'))(t); line != want+"\n" {
			t.Fatalf("said %q, want %q", line, want)
		}
	}
}

// cleaned makes sure that a look at what is left changes nothing, and that
// cleaning deals with all of it.
func cleaned(t *testing.T, e *Engine, moment string) (left []Leftover) {
	t.Helper()
	left = must(e.leftovers())(t)
	if again := must(e.leftovers())(t); !slices.Equal(left, again) {
		t.Errorf("%s: %v is left, then %v", moment, left, again)
	}
	done := must(e.Clean(t.Context()))(t)
	for _, l := range left {
		if !slices.ContainsFunc(done, func(d Leftover) bool { return d.What == l.What && d.Why == l.Why }) {
			t.Errorf("%s: %v is not among what was cleaned: %v", moment, l, done)
		}
	}
	for _, d := range done {
		if d.Done == "" {
			t.Errorf("%s: %v: nothing was done", moment, d)
		}
	}
	if again := must(e.leftovers())(t); len(again) != 0 {
		t.Errorf("%s: cleaned, and %v is left", moment, again)
	}
	return left
}

// A deadpeer that attaches with hooks and detaches is killed at many moments:
// the next one finds what is half done and takes it back; what was whole stays
// until it is detached.
func TestHooksKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hooks, cgroup := hookDir(t), testCgroup(t)
	w.open(Options{ProcRoot: procRoot(t), HookDir: hooks})
	w.engine.cgroups = folderOf(t, cgroup)
	w.connect("tcp4", w.near, 6)
	w.diversify()
	before := w.serverOptions()
	const kills = 4
	var round time.Duration
	kinds := map[string]int{}
	for n := range kills {
		cmd := w.child(role{Do: "hooks", Hooks: hooks, Cgroup: cgroup, Kin: true, Proc: procRoot(t)})
		await := lineReader(t, cmd)
		await("round")
		start := time.Now()
		if n == 0 {
			await("round")
			round = time.Since(start)
		}
		time.Sleep(round * time.Duration(n) / kills)
		ok(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
		for _, l := range cleaned(t, w.engine, fmt.Sprintf("after %v", round*time.Duration(n)/kills)) {
			kinds[strings.Fields(l.What)[0]]++
		}
		for _, a := range must(w.engine.Attachments(t.Context()))(t) {
			if a.Half || !a.Active || a.Sockets != 6 {
				t.Errorf("%+v", a)
			}
			kinds["whole"]++
		}
		w.detach()
		w.unchanged(before)
		nothingLeft(t, w.dir)
		if list := must(os.ReadDir(hooks))(t); len(list) != 0 {
			t.Errorf("%v is pinned", list)
		}
	}
	if kinds["attachment"] == 0 {
		t.Errorf("never killed half way: %v", kinds)
	}
	t.Logf("a round takes %v; left: %v", round, kinds)
}

// What is left is told apart from what a living deadpeer is at, and damaged
// hooks, hooks without an attachment and cgroups without a hook are found.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	dir, hooks, cgroup := runtimeDir(t), hookDir(t), testCgroup(t)
	folder, e := folderOf(t, cgroup), New(Options{RuntimeDir: dir, HookDir: hooks})
	e.cgroups = folder
	lock := must(journal.Lock(t.Context(), dir))(t)
	var held *journal.HeldError
	if _, err := e.leftovers(); !errors.As(err, &held) || held.PID != os.Getpid() {
		t.Errorf("while another is at work: %v", err)
	}
	ok(t, lock.Close())
	ok(t, os.MkdirAll(hooks+"/run-0badbad0", 0o700)) // its maker was killed at once
	h := must(bpf.AttachHook(bpf.HookOptions{
		Dir: hooks, ID: "beef-0", Home: e.home(), Cgroup: folder, Rules: []bpf.Rule{{Policy: keepalive.Policy{Idle: time.Minute, Interval: time.Second, Probes: 3, UserTimeout: -1}}},
	}))(t)
	ok(t, h.Close())
	for _, name := range []string{"0badbad0", "0badbad1"} {
		ok(t, os.Mkdir(filepath.Join(folder, runCgroup+name), 0o755))
	}
	own := must(newCgroup(filepath.Join(folder, runCgroup+"11111111")))(t) // a program is about to enter it
	var list []string
	for _, f := range e.Diagnose() {
		if f.Left {
			list = append(list, f.Detail)
		}
	}
	text := strings.Join(list, "\n")
	for _, want := range []string{"beef-0: its attachment is gone", "run-0badbad0: its program has ended", runCgroup + "0badbad1: no program is in it"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in what is left:\n%s", want, text)
		}
	}
	if strings.Contains(text, "11111111") {
		t.Errorf("a program that begins is among what is left:\n%s", text)
	}
	cleaned(t, e, "by hand")
	for name, want := range map[string]bool{"0badbad0": false, "0badbad1": false, "11111111": true} {
		if _, err := os.Stat(filepath.Join(folder, runCgroup+name)); (err == nil) != want {
			t.Errorf("cgroup of %s: %v", name, err)
		}
	}
	ok(t, own.Close())
	ok(t, unix.Rmdir(filepath.Join(folder, runCgroup+"11111111")))
	if left := must(os.ReadDir(hooks))(t); len(left) != 0 {
		t.Errorf("%v is pinned", left)
	}
}

// Policies that are in force stay: those of an attachment in another runtime
// folder, and of a program in a cgroup that is not to be seen from here.
func TestOthersAreNotLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hooks, cgroup := hookDir(t), testCgroup(t)
	w.engine = New(Options{RuntimeDir: w.dir, HookDir: hooks})
	must(w.engine.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute(), New: true, Cgroup: cgroup}}}))(t)
	program := filepath.Join(folderOf(t, cgroup), runCgroup+"1")
	ok(t, os.Mkdir(program, 0o755))
	h := must(bpf.AttachHook(bpf.HookOptions{Dir: hooks, ID: runHook + "1", Cgroup: program, Rules: []bpf.Rule{{Policy: minute()}}}))(t)
	ok(t, h.Close())
	other := New(Options{RuntimeDir: runtimeDir(t), HookDir: hooks})
	other.cgroups = t.TempDir()
	if done := must(other.Clean(t.Context()))(t); len(done) != 0 {
		t.Errorf("cleaned %v", done)
	}
	if list := must(w.engine.Attachments(t.Context()))(t); len(list) != 1 || !list[0].Active {
		t.Errorf("%+v", list)
	}
	_, err := other.Attach(t.Context(), AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute(), New: true, Cgroup: cgroup}}})
	if err == nil || !strings.Contains(err.Error(), "of another deadpeer") || !strings.Contains(err.Error(), w.dir) {
		t.Errorf("for connections that another's policy is for: %v", err)
	}
	w.detach()
	ok(t, unix.Rmdir(program))
	wait(t, "the kernel lets go of the cgroup", func() bool { return len(must(other.Clean(t.Context()))(t)) == 1 })
	if left := must(os.ReadDir(hooks))(t); len(left) != 0 {
		t.Errorf("%v is pinned", left)
	}
}

// Who waits for a program to end keeps nothing of others.
func TestWatcherLetsGoOfOthers(t *testing.T) {
	t.Parallel()
	hooks, cgroup := hookDir(t), testCgroup(t)
	e := New(Options{RuntimeDir: runtimeDir(t), HookDir: hooks})
	sleep := exec.Command("sh", "-c", `echo 0 >"$1/cgroup.procs" && echo in && exec sleep 60`, "sh", folderOf(t, cgroup))
	await := lineReader(t, sleep)
	end := sync.OnceFunc(func() { _, _ = sleep.Process.Kill(), sleep.Wait() })
	t.Cleanup(end)
	await("in")
	for _, id := range []string{"1", "2"} {
		h := must(bpf.AttachHook(bpf.HookOptions{Dir: hooks, ID: runHook + id, Cgroup: folderOf(t, cgroup), Rules: []bpf.Rule{{Policy: minute()}}}))(t)
		ok(t, h.Close())
	}
	pinned := must(ebpf.LoadPinnedMap(hooks+"/"+runHook+"2/places", nil))(t)
	id, known := must(pinned.Info())(t).ID()
	ok(t, pinned.Close())
	if !known {
		t.Fatal("no ID")
	}
	ended := make(chan error)
	go func() { ended <- e.WatchProgram("1", strings.NewReader("")) }()
	time.Sleep(300 * time.Millisecond) // it has begun to wait
	ok(t, e.unhook(runHook+"2"))
	wait(t, "the maps of the other", func() bool {
		m, err := ebpf.NewMapFromID(id)
		if err == nil {
			ok(t, m.Close())
		}
		return errors.Is(err, os.ErrNotExist)
	})
	end()
	ok(t, <-ended)
}

// The cgroup of a program that is about to begin is not taken for one that was
// left, though nobody is in it and its deadpeer has another runtime folder.
func TestBeginningIsNotLeft(t *testing.T) {
	t.Parallel()
	e := New(Options{RuntimeDir: runtimeDir(t), HookDir: hookDir(t)})
	e.cgroups = folderOf(t, testCgroup(t))
	cgroup := filepath.Join(e.cgroups, runCgroup+"00000001")
	open := must(newCgroup(cgroup))(t)
	if done := must(e.Clean(t.Context()))(t); len(done) != 0 {
		t.Errorf("cleaned %v", done)
	}
	ok(t, open.Close())
	if done := must(e.Clean(t.Context()))(t); len(done) != 1 || !strings.Contains(done[0].What, cgroup) {
		t.Errorf("cleaned %v, want %s", done, cgroup)
	}
	if _, err := os.Stat(cgroup); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", cgroup, err)
	}
}
