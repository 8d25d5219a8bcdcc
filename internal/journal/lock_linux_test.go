package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLock(t *testing.T) {
	dir := runtimeDir(t)
	cmd, lines := start(t, "lock", dir)
	if !lines.Scan() || lines.Text() != "locked" {
		t.Fatalf("helper: %q, %v", lines.Text(), lines.Err())
	}
	once, cancel := context.WithCancel(t.Context())
	cancel()
	var held *HeldError
	if _, err := Lock(once, dir); !errors.As(err, &held) || held.PID != cmd.Process.Pid || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want it held by %d", err, cmd.Process.Pid)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Lock(short, dir); !errors.As(err, &held) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want it held until the deadline", err)
	}

	// One that waits has it when the holder is killed.
	type result struct {
		lock *AskLock
		err  error
	}
	got := make(chan result, 1)
	go func() {
		l, err := Lock(t.Context(), dir)
		got <- result{l, err}
	}()
	select {
	case r := <-got:
		t.Fatalf("two hold it: %v", r.err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}

	// It excludes others of this process, too, until it is given back.
	if _, err := Lock(once, dir); !errors.As(err, &held) || held.PID != os.Getpid() {
		t.Fatalf("got %v, want it held by us", err)
	}
	if err := r.lock.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Lock(once, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLockFileHostile(t *testing.T) {
	dir := runtimeDir(t)
	l, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	once, cancel := context.WithCancel(t.Context())
	cancel()
	for _, content := range []string{"", "-5", "12345678901234567890", "x\x1b[2J", strings.Repeat("9", 1<<20)} {
		if err := os.WriteFile(filepath.Join(dir, "ask.lock"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var held *HeldError
		if _, err := Lock(once, dir); !errors.As(err, &held) || held.PID != 0 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%.20q: got %q, want an unknown holder", content, err)
		}
	}
	linked := filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.Mkdir(linked, 0o700), os.Symlink("/dev/null", filepath.Join(linked, "ask.lock"))); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(t.Context(), linked); err == nil {
		t.Error("followed a symlink")
	}
}

// The lock takes no space: a full /run keeps no program from being started.
func TestLockDiskFull(t *testing.T) {
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k,mode=700")
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") == "" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	l, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
