package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

func openRead(path string) (*os.File, error) { return os.Open(path) }

// syncFolder has nothing to do: Windows writes folders through (NTFS journals
// renames).
func syncFolder(string) error { return nil }

func owner(fs.FileInfo) (uid, gid int) { return 0, 0 }

func giveTo(*os.File, int, int) error { return nil }

// mayWrite is not asked: there is no file to be set here.
func mayWrite(string) error { return nil }

func denied(err error) error { return err }

// prepareState makes the state folder. What is below %ProgramData% has the
// rights that Windows gives it there.
func prepareState(dir string) error { return os.MkdirAll(dir, 0o700) }

// lockFile takes the lock; false when another process has it.
func lockFile(f *os.File) (bool, error) {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, windows.ERROR_LOCK_VIOLATION), errors.Is(err, windows.ERROR_IO_PENDING):
		return false, nil
	}
	return false, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
}

func defaultStateDir() string {
	base := os.Getenv("ProgramData")
	if base == "" {
		base = `C:\ProgramData`
	}
	return filepath.Join(base, "deadpeer")
}
