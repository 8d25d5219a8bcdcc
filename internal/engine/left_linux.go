package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/journal"
)

// leftovers lists what deadpeer processes that were killed have left behind,
// and changes nothing. While another deadpeer is at work, which cannot be told
// apart from one that was killed, there is an error matching
// *journal.HeldError beside the rest. Needs what Attach needs.
func (e *Engine) leftovers() (list []Leftover, err error) {
	orphans, err := journal.Left(e.options.RuntimeDir)
	for _, o := range orphans {
		list = append(list, leftJournal(o))
		_ = o.Close() // nothing was written to it
	}
	if _, missing := os.Stat(e.options.RuntimeDir); missing == nil {
		const soon = 100 * time.Millisecond
		now, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		lock, lockErr := journal.Lock(now, e.options.RuntimeDir)
		if lockErr != nil {
			return list, errors.Join(err, lockErr)
		}
		defer func() { _ = lock.Close() }()
	}
	known, knownErr := e.attachments()
	defer closeAttachments(known)
	for _, a := range known {
		if !a.Whole() {
			list = append(list, a.left())
		}
	}
	strays, strayErr := e.strays()
	for _, s := range strays {
		list = append(list, s.Leftover)
		s.close()
	}
	return list, errors.Join(err, knownErr, strayErr)
}

// Clean undoes and removes what deadpeer processes that were killed have left
// behind: it puts back what they changed in order to ask, takes back what they
// attached or detached by halves, and removes policies for new connections,
// and cgroups, that nobody has any use for. It goes on where one of them
// cannot be undone; that has an error, and nothing Done. Needs what Attach
// needs.
func (e *Engine) Clean(ctx context.Context) (list []Leftover, err error) {
	err = e.replay(ctx, func(o journal.Orphan, restored, waiting int, err error) {
		left := leftJournal(o)
		if err == nil {
			left.Done = count(restored, "setting") + " put back"
			if waiting > 0 {
				left.Done += fmt.Sprintf(", %d to be tried again once the peer has answered a probe", waiting)
			}
			if gone := len(o.Records) - restored - waiting; gone > 0 {
				left.Done += fmt.Sprintf(", %d had ended", gone)
			}
		}
		list = append(list, left)
	})
	if err != nil {
		return list, err
	}
	// Without a folder to lock nobody was here; and none is made.
	if _, missing := os.Stat(e.options.RuntimeDir); errors.Is(missing, fs.ErrNotExist) {
		strays, err := e.strays()
		closeStrays(strays)
		if len(strays) == 0 {
			return list, err
		}
	}
	unlock, err := e.lockSettings(ctx)
	if err != nil {
		return list, err
	}
	defer unlock()
	halves, err := e.cleanAttachments(ctx)
	removed, strayErr := e.removeStrays()
	list = append(append(list, halves...), removed...)
	torn, tornErr := journal.RemoveTorn(e.options.RuntimeDir)
	if torn > 0 {
		list = append(list, Leftover{What: count(torn, "file") + " of attachments", Why: "not completed", Done: "removed"})
	}
	return list, errors.Join(err, strayErr, tornErr)
}

func leftJournal(o journal.Orphan) Leftover {
	return Leftover{What: fmt.Sprintf("journal of process %d", o.PID), Why: count(len(o.Records), "setting") + " to be put back"}
}

func (a attachment) left() Leftover {
	return Leftover{What: "attachment " + a.ID, Why: "interrupted while it attached or detached " + count(a.Len(), "connection")}
}

// cleanAttachments detaches those that are not whole, the newest first. The
// caller has the lock.
func (e *Engine) cleanAttachments(ctx context.Context) (list []Leftover, err error) {
	all, err := e.attachments()
	defer closeAttachments(all)
	for _, a := range slices.Backward(all) {
		if a.Whole() {
			continue
		}
		left := a.left()
		out, detachErr := e.detach(ctx, all, a)
		switch {
		case detachErr != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", left.What, detachErr))
		case out.Failed > 0:
			err = errors.Join(err, fmt.Errorf("%s: %s could not be put back", left.What, count(out.Failed, "connection")))
		default:
			left.Done = fmt.Sprintf("%s put back, %d had ended", count(out.Changed, "connection"), out.Ended)
		}
		list = append(list, left)
	}
	return list, err
}

// stray is a hook or a cgroup, or both, that nobody has any use for.
type stray struct {
	Leftover
	hook   *bpf.Hook // nil for a cgroup alone
	cgroup string    // "" when it is not one of ours
}

func (s stray) close() {
	if s.hook != nil {
		_ = s.hook.Close() // it stays as it is
	}
}

func closeStrays(list []stray) {
	for _, s := range list {
		s.close()
	}
}

func (s stray) remove() error {
	var err error
	if s.hook != nil {
		err = s.hook.Remove()
	}
	if s.cgroup != "" {
		err = errors.Join(err, removeCgroup(s.cgroup))
	}
	return err
}

// strays finds hooks whose attachment is gone, and the hooks and cgroups of
// programs that have ended, or never began, while nobody watched. They are
// that only for a caller with the lock. Close them.
func (e *Engine) strays() (list []stray, err error) {
	hooks, err := bpf.Hooks(e.options.HookDir)
	cgroups := e.runCgroups() // after the hooks: a cgroup is there before its hook
	known, knownErr := e.attachments()
	closeAttachments(known)
	home := e.home()
	for _, h := range hooks {
		program, started := strings.CutPrefix(h.Label.ID, runHook)
		s := stray{Leftover: Leftover{What: "policy for new connections " + h.Label.ID}, hook: h}
		if started {
			// The label of a damaged hook names no cgroup.
			s.cgroup, s.Why = cgroups[program], "its program has ended"
			delete(cgroups, program)
			going := h.Active() // a cgroup that is not to be seen from here
			if s.cgroup != "" {
				going = populated(s.cgroup) || beginning(s.cgroup)
			}
			if going {
				s.close()
				continue
			}
		} else {
			id, _, _ := strings.Cut(h.Label.ID, "-")
			s.Why = "its attachment is gone"
			if knownErr != nil || h.Label.Home != home || slices.ContainsFunc(known, func(a attachment) bool { return a.ID == id }) {
				s.close()
				continue
			}
		}
		list = append(list, s)
	}
	for _, id := range slices.Sorted(maps.Keys(cgroups)) {
		if dir := cgroups[id]; !populated(dir) && !beginning(dir) {
			list = append(list, stray{Leftover: Leftover{What: "cgroup " + dir, Why: "no program is in it"}, cgroup: dir})
		}
	}
	return list, errors.Join(err, knownErr)
}

// home tells our runtime folder from those of others with the same bpffs, be
// it of the same name, as in a container.
func (e *Engine) home() string {
	var st unix.Stat_t
	_ = unix.Stat(e.options.RuntimeDir, &st) // one that is not there has no attachments
	return fmt.Sprintf("%s on device %d", e.options.RuntimeDir, st.Dev)
}

// removeStrays removes what nobody has any use for. The caller has the lock.
func (e *Engine) removeStrays() (list []Leftover, err error) {
	strays, err := e.strays()
	for _, s := range strays {
		if removeErr := s.remove(); removeErr != nil {
			err = errors.Join(err, removeErr)
		} else {
			s.Done = "removed"
		}
		list = append(list, s.Leftover)
	}
	return list, err
}

// runCgroups finds the cgroups of programs that were started by us, by their
// IDs.
func (e *Engine) runCgroups() map[string]string {
	found, root := map[string]string{}, e.cgroups
	if root == "" {
		var err error
		if root, err = bpf.CgroupRoot(); err != nil {
			return found // then there are none
		}
	}
	var look func(dir string)
	look = func(dir string) {
		var st unix.Stat_t
		// On kernfs the links of a folder count the folders in it.
		if unix.Lstat(dir, &st) != nil || st.Nlink <= 2 {
			return
		}
		entries, _ := os.ReadDir(dir) // a cgroup may vanish meanwhile
		for _, d := range entries {
			path := filepath.Join(dir, d.Name())
			if id, ours := strings.CutPrefix(d.Name(), runCgroup); ours && d.IsDir() {
				found[id] = path
			} else if d.IsDir() {
				look(path)
			}
		}
	}
	look(root)
	return found
}

// newCgroup makes the cgroup of a program and keeps others, in other runtime
// folders, from taking it for one that was left, until its file is closed.
func newCgroup(dir string) (*os.File, error) {
	for {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_SH)
		}
		if err == nil {
			if _, err = os.Lstat(dir); err == nil {
				return f, nil
			}
		}
		if f != nil {
			_ = f.Close() // nothing was written to it
		}
		if !errors.Is(err, fs.ErrNotExist) { // else it was taken for one that was left
			return nil, errors.Join(err, os.Remove(dir))
		}
	}
}

// beginning reports whether a program is about to enter the cgroup.
func beginning(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil { // not by closing alone: a child that is being started has a copy for a moment
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	return errors.Is(err, unix.EWOULDBLOCK)
}

// removeCgroup removes a cgroup and those that the program has made below it.
func removeCgroup(cgroup string) error {
	if !strings.HasPrefix(filepath.Base(cgroup), runCgroup) {
		return nil // not one of ours
	}
	var dirs []string
	_ = filepath.WalkDir(cgroup, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, dir)
		}
		return nil // what cannot be read cannot be removed either
	})
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		// A process that has ended may still be counted for a moment.
		err := unix.Rmdir(dir)
		for try := 0; errors.Is(err, unix.EBUSY) && try < 50; try++ {
			time.Sleep(20 * time.Millisecond)
			err = unix.Rmdir(dir)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
