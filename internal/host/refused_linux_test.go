package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.picture()
	for want, c := range map[string]Change{
		"net.ipv4.tcp_keepalive_time 0 s: allowed is 1 s to 32767 s": {Values: map[Part]int64{Idle: 0, Probes: 5}},
		"net.ipv4.tcp_keepalive_probes 128: allowed is 1 to 127":     {Values: map[Part]int64{Probes: 128}},
		"net.ipv4.tcp_retries2 2: allowed is 3 to 255":               {Values: map[Part]int64{Retries2: 2}},
		"nothing to set":   {},
		"has no parameter": {Values: map[Part]int64{SYNACKRetries: 3}},
	} {
		if _, err := w.host().Set(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	w.as(before, "refused")
	w.write(dropInPath, "-> ../elsewhere")
	if _, err := w.host().Set(t.Context(), Change{Values: lan()}); err == nil || !strings.Contains(err.Error(), "is a symlink") {
		t.Errorf("a symlink: %v", err)
	}
	w.noJournal("refused")
}

func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.set(lan())
	before := w.picture()
	h := w.host()
	ok(t, os.WriteFile(h.journal(), []byte(`{"version":1,"original":{"live":{"kernel.core_pattern":"x"}}}`), 0o600))
	_, setErr := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 40}})
	_, restoreErr := h.Restore(t.Context())
	for _, err := range []error{setErr, restoreErr} {
		if err == nil || !strings.Contains(err.Error(), `"kernel.core_pattern" is not a parameter`) {
			t.Errorf("got %v", err)
		}
	}
	w.as(before, "refused")
	if s, err := h.Show(); err != nil || s.JournalErr == nil {
		t.Errorf("shown: %v, %v", s.JournalErr, err)
	}
}

func TestStateFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ok(t, os.Mkdir(w.state, 0o777))
	ok(t, os.Chmod(w.state, 0o777))
	before := w.picture()
	if _, err := w.host().Set(t.Context(), Change{Values: lan()}); err == nil || !strings.Contains(err.Error(), "others may write to it") {
		t.Errorf("got %v", err)
	}
	w.as(before, "refused")
}

// On read-only file systems nothing is begun.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(w *world) string{
		"/etc":      func(w *world) string { return filepath.Join(w.root, "etc") },
		"/proc/sys": func(*world) string { return "/proc/sys" },
		"state folder": func(w *world) string {
			ok(w.t, os.Mkdir(w.state, 0o700))
			return w.state
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.role("set-read-only", lan())
			r.Mount = mount(w)
			before := w.picture()
			cmd := process(t, r)
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "read-only file system") {
				t.Errorf("%v: %q", err, out)
			}
			w.as(before, "refused")
			w.noJournal("refused")
		})
	}
}

// Somebody without the rights is told which, and nothing is begun.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.picture()
	cmd := process(t, w.role("set-as-nobody", lan()))
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "no such user") {
		t.Skip("in this user namespace there is nobody else")
	}
	if err == nil || !strings.Contains(string(out), "needs CAP_NET_ADMIN over the network namespace") {
		t.Errorf("%v: %q", err, out)
	}
	w.as(before, "refused")
	w.noJournal("refused")
}

func TestLock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release, err := w.host().lock(t.Context())
	ok(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.host().Set(ctx, Change{Values: lan()}); !errors.Is(err, context.Canceled) {
		t.Errorf("while another changes the host: %v", err)
	}
	release()
	w.set(lan())
}

// Hardened hosts keep the files to root: what is in force is shown all the
// same.
func TestShowWithoutTheFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("/etc/sysctl.d/60-theirs.conf", timeKey+" = 600\n")
	ok(t, os.Chmod(filepath.Join(w.root, "/etc/sysctl.d/60-theirs.conf"), 0o600))
	h, err := New(Options{Root: w.root, StateDir: w.state})
	ok(t, err)
	var state State
	runtime.LockOSThread() // another user's until asNobody returns
	defer runtime.UnlockOSThread()
	err = asNobody(func() (err error) {
		state, err = h.Show()
		return err
	})
	if errors.Is(err, unix.EINVAL) {
		t.Skip("in this user namespace there is nobody else")
	}
	ok(t, err)
	if s, _ := state.Part(Idle); !errors.Is(state.BootErr, fs.ErrPermission) || s.Live == nil || s.Persisted != nil {
		t.Errorf("%+v, %v", s, state.BootErr)
	}
}
