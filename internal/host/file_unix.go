//go:build unix

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// openRead opens a file to be read; O_NONBLOCK, lest a FIFO keep us waiting.
func openRead(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// syncFolder makes what was created, renamed or removed in a folder durable.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func owner(st fs.FileInfo) (uid, gid int) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), int(s.Gid)
	}
	return os.Geteuid(), os.Getegid()
}

func giveTo(f *os.File, uid, gid int) error {
	if uid == os.Geteuid() && gid == os.Getegid() {
		return nil
	}
	return f.Chown(uid, gid)
}

// mayWrite returns the error that writing the file would meet: it asks about
// the folder, or about the nearest one above that is there.
func mayWrite(path string) error {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		if err == unix.ENOENT && dir != filepath.Dir(dir) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "write to", Path: dir, Err: err}
		}
		return nil
	}
}

// denied makes a read-only file system one kind of permission that is missing.
func denied(err error) error {
	if errors.Is(err, unix.EROFS) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (%w: mounted read-only)", err, fs.ErrPermission)
	}
	return err
}

// prepareState makes the state folder, of root alone, and refuses one that
// others could have put a journal in.
func prepareState(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Clean(dir), &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("folder %s: is a symlink or no folder", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("folder %s: belongs to user %d, not to us (%d)", dir, st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return fmt.Errorf("folder %s: others may write to it (mode %04o)", dir, st.Mode&0o7777)
	}
	return nil
}

// lockFile takes the lock; false when another process has it.
func lockFile(f *os.File) (bool, error) {
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return true, nil
	case unix.EWOULDBLOCK, unix.EINTR:
		return false, nil
	default:
		return false, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
}

// defaultStateDir is where the journal is kept.
func defaultStateDir() string { return "/var/lib/deadpeer" }
