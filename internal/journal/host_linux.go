package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// bootID tells one boot of the kernel from the next (random(4)).
func bootID() (id [16]byte, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("read boot id: %w", err)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("read boot id: %q is not one", b)
	}
	return [16]byte(raw), nil
}

// startTime is when a process started, in ticks since boot. A zombie is as
// good as gone: it matches fs.ErrNotExist, too.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	switch {
	case errors.Is(err, unix.ESRCH): // it ended after the file was opened
		return 0, fmt.Errorf("read start time of process %d: %w", pid, fs.ErrNotExist)
	case err != nil:
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	start, err := parseStartTime(b)
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return start, nil
}

// parseStartTime reads field 22 of proc_pid_stat(5). Fields count from the
// last parenthesis, since the name before it may hold anything.
func parseStartTime(stat []byte) (uint64, error) {
	const state, start = 0, 22 - 3
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= start {
		return 0, errors.New("too few fields")
	}
	if s := fields[state]; s[0] == 'Z' || s[0] == 'X' {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(string(fields[start]), 10, 64)
}

func prepareDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkDir(dir)
}

func checkDir(dir string) error {
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

// openFile opens a file of ours; O_NONBLOCK, lest a FIFO keep us waiting.
func openFile(path string, flag int) (*os.File, error) {
	return os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
}

// tryLock takes flock(2) on the open file, or tells that another has it.
func tryLock(f *os.File) (bool, error) {
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			return true, nil
		case unix.EWOULDBLOCK:
			return false, nil
		case unix.EINTR:
		default:
			return false, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

func unlock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }

func dataSync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}
