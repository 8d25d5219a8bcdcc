package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// AskLock is the right to ask, of one process per host at a time.
type AskLock struct{ file *os.File }

// HeldError says that another process has the right to ask.
type HeldError struct {
	PID int   // the process that holds it, 0 when not known
	Err error // why waiting ended, of the context
}

// Error names the process.
func (e *HeldError) Error() string {
	if e.PID == 0 {
		return "held by another process: " + e.Err.Error()
	}
	return fmt.Sprintf("held by process %d: %v", e.PID, e.Err)
}

// Unwrap gives the context's error.
func (e *HeldError) Unwrap() error { return e.Err }

const lockRetry = 50 * time.Millisecond

// Lock takes the right to ask: an flock(2) on the file ask.lock in the folder,
// which it creates and checks as [Open] does. It waits until it has it or ctx
// ends, then with a [*HeldError]. With a ctx that has ended already it tries
// once. The kernel gives the lock back when the process dies.
func Lock(ctx context.Context, dir string) (*AskLock, error) {
	path := filepath.Join(dir, "ask.lock")
	l, err := lock(ctx, dir, path)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return l, nil
}

func lock(ctx context.Context, dir, path string) (*AskLock, error) {
	if err := prepareDir(dir); err != nil {
		return nil, err
	}
	f, err := openFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	// flock cannot be waited for and cancelled at once, so it is retried.
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		locked, err := tryLock(f)
		if err == nil && locked {
			// Who has it is for others to tell; there may be no space for that.
			_ = writePID(f, strconv.Itoa(os.Getpid())+"\n")
			return &AskLock{f}, nil
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			err := &HeldError{PID: readPID(f), Err: ctx.Err()}
			_ = f.Close() // nothing was written to it
			return nil, err
		case <-retry.C:
		}
	}
}

// Close gives the right back. The file stays: whoever removes a lock file may
// remove one that somebody has just locked.
func (l *AskLock) Close() error {
	// Unlocked first: a process that is being started has the file, too, until
	// execve(2) closes it.
	return errors.Join(writePID(l.file, ""), unlock(l.file), l.file.Close())
}

func writePID(f *os.File, pid string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(pid), 0)
	return err
}

func readPID(f *os.File) int {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 16))
	if err != nil {
		return 0
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || pid < 0 {
		return 0
	}
	return int(pid)
}
