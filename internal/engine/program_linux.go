package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
)

const (
	runHook   = "run-"          // hooks of programs that were started by us
	runCgroup = "deadpeer-run-" // and their cgroups
)

// RunProgram becomes the program, in a cgroup of its own below ours, all of
// whose connections get the policy before the program has them. It returns
// only when that failed, with everything put back; an *exec.Error when it was
// the program that could not be started. Being the program itself, and no
// parent of it, keeps its pid, terminal and exit code as they would be, and
// signals but for those that were ignored: of these Go's runtime remembers HUP
// and INT, and leaves those of job control alone. Needs CAP_BPF, CAP_PERFMON,
// CAP_NET_ADMIN and write access to the cgroup.
func (e *Engine) RunProgram(ctx context.Context, req ProgramRequest) error {
	path, err := exec.LookPath(req.Args[0])
	if err != nil {
		return fmt.Errorf("find program: %w", err)
	}
	if err := bpf.Allowed(); err != nil && !e.options.NoBPF {
		return fmt.Errorf("give the program a policy: %w", err)
	}
	unlock, err := e.lockSettings(ctx) // the kernel gives it back when the program begins
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := e.removeStrays(); err != nil {
		return fmt.Errorf("remove what a killed deadpeer left: %w", err)
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	own, err := ownCgroup()
	if err != nil {
		return err
	}
	cgroup := filepath.Join(own, runCgroup+id)
	held, err := newCgroup(cgroup)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w (needs root, or a cgroup of one's own)", err)
		}
		return fmt.Errorf("make a cgroup for the program: %w", err)
	}
	defer func() { _ = held.Close() }() // execve(2) does it otherwise
	err = e.runIn(cgroup, id, path, req)
	back := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0)
	return errors.Join(err, back, e.endProgram(id, cgroup))
}

func (e *Engine) runIn(cgroup, id, path string, req ProgramRequest) error {
	if e.options.NoBPF {
		return fmt.Errorf("give the program a policy: it takes BPF, which is switched off: %w; start it without, then deadpeer attach --pid", errors.ErrUnsupported)
	}
	hook, err := bpf.AttachHook(bpf.HookOptions{
		Dir: e.options.HookDir, ID: runHook + id, Cgroup: cgroup, Rules: []bpf.Rule{{Policy: req.Policy, Enforce: req.Enforce}},
	})
	if err != nil {
		return fmt.Errorf("give the program a policy: %w; start it without, then deadpeer attach --pid; deadpeer doctor says what is missing", noBPFFS(err))
	}
	if err := hook.Close(); err != nil {
		return err
	}
	begun, hold, err := os.Pipe() // hold is closed by execve(2)
	if err != nil {
		return err
	}
	defer func() { _, _ = hold.Close(), begun.Close() }()
	if err := req.Watch(id, begun); err != nil {
		return fmt.Errorf("start the watcher: %w", err)
	}
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter the cgroup of the program: %w", err)
	}
	signal.Reset() // HUP and INT that were ignored are again
	if err := syscall.Exec(path, req.Args, req.Env); err != nil {
		return fmt.Errorf("start program: %w", &exec.Error{Name: path, Err: err})
	}
	return nil
}

// noBPFFS says how to get what a hook is pinned on.
func noBPFFS(err error) error {
	if _, missing := bpf.PinDir(); missing != nil {
		return fmt.Errorf("%w (%w): mount -t bpf bpf /sys/fs/bpf", err, errors.ErrUnsupported)
	}
	return err
}

// ownCgroup is the folder of the cgroup v2 we are in.
func ownCgroup() (string, error) {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return "", fmt.Errorf("find our cgroup: %w", err)
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find our cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			dir := filepath.Join(root, filepath.Clean("/"+path))
			if _, err := os.Stat(dir); err == nil {
				return dir, nil
			}
		}
	}
	return root, nil
}

// WatchProgram waits until a program that RunProgram became, and all that it
// has started, have ended, and removes their cgroup and hook. begun ends when
// the program has begun.
func (e *Engine) WatchProgram(id string, begun io.Reader) error {
	if _, err := io.Copy(io.Discard, begun); err != nil {
		return fmt.Errorf("wait for the program: %w", err)
	}
	hooks, err := e.hooksOf(runHook + id)
	closeHooks(hooks) // an open one would keep its maps in memory
	if len(hooks) == 0 {
		return err // it has been cleaned up
	}
	cgroup := hooks[0].Label.Cgroup
	for populated(cgroup) {
		if err := awaitEvent(filepath.Join(cgroup, "cgroup.events")); err != nil {
			return fmt.Errorf("watch the program's cgroup: %w", err)
		}
	}
	return e.endProgram(id, cgroup)
}

// awaitEvent waits until the file may say something else (cgroups(7), "Cgroups
// v2 release notification"), for a second at most.
func awaitEvent(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var b [64]byte
	if _, err := f.Read(b[:]); err != nil || !bytes.Contains(b[:], []byte("populated 1")) {
		return nil
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, int(time.Second/time.Millisecond))
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// populated reports whether a process lives in the cgroup or below it.
func populated(cgroup string) bool {
	b, err := os.ReadFile(filepath.Join(cgroup, "cgroup.events"))
	return err == nil && bytes.Contains(b, []byte("populated 1"))
}

// Programs lists the programs that RunProgram became and that still run, the
// oldest first, with what their policies have done. Needs what RunProgram
// needs; without, there are none.
func (e *Engine) Programs(ctx context.Context) (list []Attachment, err error) {
	hooks, err := e.hooksOf(runHook)
	defer closeHooks(hooks)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	for _, h := range hooks {
		if h.Damaged != nil || !populated(h.Label.Cgroup) {
			continue // doctor tells of it
		}
		a := Attachment{ID: h.Label.ID, At: h.Label.Made, Program: programIn(h.Label.Cgroup), New: true, Active: h.Active()}
		for _, r := range h.Label.Rules {
			a.Rules = append(a.Rules, AttachedRule{Policy: r.Policy, New: true, Enforce: r.Enforce})
		}
		countErr := h.Changed(ctx, func(bpf.Changed) error { a.Sockets++; return nil })
		err = errors.Join(err, countErr, a.count(h))
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b Attachment) int { return a.At.Compare(b.At) })
	return list, err
}

// programIn names the first process in a cgroup.
func programIn(cgroup string) string {
	const unnamed = "?"
	pids, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	pid, _, found := strings.Cut(string(pids), "\n")
	if err != nil || !found {
		return unnamed // it is in a cgroup below, or has ended
	}
	comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		return unnamed
	}
	return fmt.Sprintf("%s[%s]", strings.TrimSuffix(string(comm), "\n"), pid)
}

// enforcedPrograms gives the connections of programs that were started by us and
// cannot weaken their policy, with the names of their hooks.
func (e *Engine) enforcedPrograms(ctx context.Context) (map[conn.ID]string, error) {
	if !e.mayUseBPF() {
		return nil, nil
	}
	ids := map[conn.ID]string{}
	err := e.eachGiven(ctx, runHook, func(h *bpf.Hook, c bpf.Changed) {
		if h.Label.Enforces() {
			ids[c.ID] = h.Label.ID
		}
	})
	return ids, err
}

// endProgram removes the hook and the cgroup of a program that has ended.
func (e *Engine) endProgram(id, cgroup string) error {
	return errors.Join(e.unhook(runHook+id), removeCgroup(cgroup))
}
