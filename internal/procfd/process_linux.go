package procfd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// The most read of a file: what is longer was not written by a sane kernel.
const (
	statLimit    = 4 << 10
	cgroupLimit  = 64 << 10
	environLimit = 4 << 20
)

// maxAncestors bounds the chain of parents.
const maxAncestors = 1024

// Process tells what is known of a process. Its strings were chosen by the
// process or its parents: show them through conn.Printable. A process that is
// gone is an error matching fs.ErrNotExist.
func (f *FS) Process(pid int32) (conn.Process, error) {
	st, err := f.stat(pid)
	if err != nil {
		return conn.Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p := conn.Process{PID: pid, PPID: st.ppid, Comm: st.comm}
	data, err := read(f.path(pid, "cgroup"), cgroupLimit)
	if err != nil {
		return conn.Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p.Cgroup = parseCgroup(data)
	p.Unit = unitOf(p.Cgroup)
	p.Container = containerOf(p.Cgroup)
	return p, nil
}

// StartTime tells when a process began, in clock ticks (USER_HZ, 1/100 s)
// after boot. Together with the pid and the boot id it names a process for
// ever, pids alone being reused.
func (f *FS) StartTime(pid int32) (uint64, error) {
	st, err := f.stat(pid)
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return st.start, nil
}

// Ancestors lists the parents of a process, the nearest first, as far as the
// first process of the pid namespace. A parent that vanishes ends the list.
func (f *FS) Ancestors(pid int32) ([]int32, error) {
	st, err := f.stat(pid)
	if err != nil {
		return nil, fmt.Errorf("list ancestors of process %d: %w", pid, err)
	}
	var list []int32
	for st.ppid > 0 && st.ppid != pid && len(list) < maxAncestors && !slices.Contains(list, st.ppid) {
		list = append(list, st.ppid)
		if st, err = f.stat(st.ppid); err != nil {
			break
		}
	}
	return list, nil
}

// Environ looks up a variable in the environment a process was started with;
// ok is false when it is not there. Needs CAP_SYS_PTRACE or the same user.
func (f *FS) Environ(pid int32, key string) (value string, ok bool, err error) {
	data, err := read(f.path(pid, "environ"), environLimit)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w (needs CAP_SYS_PTRACE or the process's user)", err)
		}
		return "", false, fmt.Errorf("read environment of process %d: %w", pid, err)
	}
	value, ok = lookupEnv(data, key)
	return value, ok, nil
}

// BootID identifies this boot of the host (random(4)).
func (f *FS) BootID() (string, error) {
	data, err := read(filepath.Join(f.root, "sys/kernel/random/boot_id"), 64)
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := bytes.TrimSpace(data)
	if len(id) != 36 {
		return "", fmt.Errorf("read boot id: %q is no UUID", id)
	}
	return string(id), nil
}

func (f *FS) stat(pid int32) (stat, error) {
	data, err := read(f.path(pid, "stat"), statLimit)
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// read reads a file up to a limit; beyond it is an error.
func read(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case errors.Is(err, unix.ESRCH): // it died with its file open
		return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	case err != nil:
		return nil, err
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("read %s: longer than %d bytes", path, limit)
	}
	return data, nil
}

// stat is what we want of /proc/PID/stat.
type stat struct {
	comm  string
	ppid  int32
	start uint64 // clock ticks after boot
}

// parseStat reads proc_pid_stat(5). The name stands in parentheses and may
// hold any of ")( \n"; after the last parenthesis come numbers only.
func parseStat(data []byte) (stat, error) {
	open, shut := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || shut < open {
		return stat{}, errors.New("parse stat: no name in parentheses")
	}
	const ppid, start = 4 - 3, 22 - 3 // fields of the manual, less those up to the name
	fields := bytes.Fields(data[shut+1:])
	if len(fields) <= start {
		return stat{}, fmt.Errorf("parse stat: %d fields after the name, want more than %d", len(fields), start)
	}
	parent, err := strconv.ParseInt(string(fields[ppid]), 10, 32)
	if err != nil {
		return stat{}, fmt.Errorf("parse stat: parent: %w", err)
	}
	began, err := strconv.ParseUint(string(fields[start]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("parse stat: start time: %w", err)
	}
	return stat{comm: string(data[open+1 : shut]), ppid: int32(parent), start: began}, nil
}

// lookupEnv finds the first KEY=VALUE among the NUL-terminated strings, as
// getenv(3) does.
func lookupEnv(data []byte, key string) (string, bool) {
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if k, v, ok := bytes.Cut(entry, []byte("=")); ok && string(k) == key {
			return string(v), true
		}
	}
	return "", false
}
