package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/keepalive"
)

// A program that was started ends, and its watcher was killed: clean removes
// its hook and its cgroup, and leaves those of one that still runs.
func TestRunCleaned(t *testing.T) {
	t.Parallel()
	dir := runtimeDir(t)
	hooks, below := hookDir(t), testCgroup(t)
	start := func(script string) *exec.Cmd {
		return role{Do: "run", Kin: true, Dir: dir, Hooks: hooks, Cgroup: below, Filter: script}.command(context.Background())
	}
	going := start("read line; exit 3")
	in, out := must(going.StdinPipe())(t), &strings.Builder{}
	going.Stdout = out
	ok(t, going.Start())
	count := func() int {
		list, _ := bpf.Hooks(hooks)
		closeHooks(list)
		return len(list)
	}
	wait(t, "start", func() bool { return count() == 1 && populatedHook(hooks) })
	ended := start("cat /proc/self/cgroup; kill -9 $$")
	b, err := ended.Output()
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.Sys().(interface{ Signaled() bool }).Signaled() == false {
		t.Errorf("got %v, want it killed", err)
	}
	_, path, _ := strings.Cut(string(b), "0::")
	cgroup := filepath.Join(must(bpf.CgroupRoot())(t), strings.TrimSpace(path))
	if _, err := os.Stat(cgroup); err != nil || count() != 2 {
		t.Errorf("before cleaning: %v, %d hooks", err, count())
	}
	e := New(Options{RuntimeDir: dir, HookDir: hooks})
	e.cgroups = filepath.Dir(cgroup)
	wait(t, "the kernel counts it no more", func() bool { return !populated(cgroup) })
	if list := must(e.Clean(t.Context()))(t); len(list) != 1 || count() != 1 {
		t.Errorf("cleaned %v, %d hooks", list, count())
	}
	if _, err := os.Stat(cgroup); err == nil {
		t.Errorf("%s is left", cgroup)
	}
	ok(t, in.Close())
	if err := going.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("got %v, want exit code 3", err)
	}
	wait(t, "clean up", func() bool {
		must(e.Clean(t.Context()))(t)
		return count() == 0
	})
}

func populatedHook(dir string) bool {
	list, _ := bpf.Hooks(dir)
	defer closeHooks(list)
	return len(list) == 1 && populated(list[0].Label.Cgroup)
}

// runProgram is what a child of role run does.
func (r role) runProgram(ctx context.Context) error {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return err
	}
	e := New(Options{RuntimeDir: r.Dir, HookDir: r.Hooks})
	e.cgroups = filepath.Join(root, r.Cgroup)
	if err := os.WriteFile(filepath.Join(e.cgroups, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	fmt.Println("ready")
	return e.RunProgram(ctx, ProgramRequest{
		Args: []string{"/bin/sh", "-c", r.Filter}, Env: os.Environ(),
		Policy: keepalive.Policy{Idle: 30 * time.Second, Interval: 5 * time.Second, Probes: 4, UserTimeout: -1},
		Watch:  func(string, *os.File) error { return nil },
	})
}

// A deadpeer that starts a program is killed at many moments, with nobody to
// watch it: doctor --clean, and the next start, too, leaves nothing of it.
func TestRunKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	dir, hooks, cgroup := runtimeDir(t), hookDir(t), testCgroup(t)
	folder, e := folderOf(t, cgroup), New(Options{RuntimeDir: dir, HookDir: hooks})
	e.cgroups = folder
	child := func(script string) *exec.Cmd {
		return role{Do: "run", Kin: true, Dir: dir, Hooks: hooks, Cgroup: cgroup, Filter: script}.command(context.Background())
	}
	below := func() (list []string) {
		for _, d := range must(os.ReadDir(folder))(t) {
			if d.IsDir() {
				list = append(list, d.Name())
			}
		}
		return list
	}
	const kills = 6
	var takes time.Duration
	left := map[string]int{}
	for n := range kills {
		cmd := child("echo begun; read forever")
		stdin := must(cmd.StdinPipe())(t)
		await := lineReader(t, cmd)
		await("ready")
		start := time.Now()
		if n == 0 {
			await("begun")
			takes = time.Since(start)
		}
		moment := takes * time.Duration(n) / (kills - 1)
		time.Sleep(moment)
		ok(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
		_ = stdin.Close()
		wait(t, "the kernel counts it no more", func() bool { return !populated(folder) })
		pins := must(filepath.Glob(hooks + "/*/*"))(t)
		left[fmt.Sprintf("%d cgroups, %d hooks, %d pins", len(below()), len(must(os.ReadDir(hooks))(t)), len(pins))]++
		if n%2 == 0 {
			cleaned(t, e, fmt.Sprintf("after %v", moment))
		} else {
			next := child("exit 0")
			await := lineReader(t, next)
			await("ready")
			ok(t, next.Wait())
			if got := below(); len(got) != 1 {
				t.Errorf("after %v, and the next start: %v", moment, got)
			}
			wait(t, "the kernel counts it no more", func() bool { return !populated(folder) })
			cleaned(t, e, "after the next start")
		}
		if got := below(); len(got) != 0 {
			t.Errorf("after %v: %v is left", moment, got)
		}
		if list := must(os.ReadDir(hooks))(t); len(list) != 0 {
			t.Errorf("after %v: %v is pinned", moment, list)
		}
		nothingLeft(t, dir)
	}
	if len(left) < 2 {
		t.Errorf("never killed half way: %v", left)
	}
	t.Logf("a start takes %v; left: %v", takes, left)
}
