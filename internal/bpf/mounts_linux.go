package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// bpffs is where systemd and every tool mount the bpffs.
const bpffs = "/sys/fs/bpf"

// PinDir is where deadpeer keeps what is to survive a process: the folder
// deadpeer on the bpffs, which must be mounted at /sys/fs/bpf. The folder may
// not exist yet.
func PinDir() (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(bpffs, &st); err != nil {
		return "", &fs.PathError{Op: "find bpffs at", Path: bpffs, Err: err}
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		return "", &fs.PathError{Op: "find bpffs at", Path: bpffs, Err: errNoBPFFS}
	}
	return filepath.Join(bpffs, "deadpeer"), nil
}

var errNoBPFFS = errors.New("none is mounted there")

// CgroupRoot is where the cgroup v2 hierarchy is mounted: /sys/fs/cgroup, on
// hybrid hosts usually /sys/fs/cgroup/unified.
func CgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup v2 hierarchy: %w", err)
	}
	if root := findMount(data, "cgroup2", "/sys/fs/cgroup"); root != "" {
		return root, nil
	}
	err = errNoCgroup2
	if name := namedNetns("/run/netns"); name != "" {
		err = fmt.Errorf("%w; ip netns exec hides it, by another /sys: instead of that take nsenter --net=%s", err, name)
	}
	return "", fmt.Errorf("find the cgroup v2 hierarchy: %w", err)
}

// namedNetns is the path of the name that ip-netns(8) gave to our network
// namespace, "" when it has none.
func namedNetns(dir string) string {
	own, err := os.Stat("/proc/thread-self/ns/net")
	entries, dirErr := os.ReadDir(dir)
	if err != nil || dirErr != nil {
		return ""
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if st, err := os.Stat(name); err == nil && os.SameFile(own, st) {
			return name
		}
	}
	return ""
}

var errNoCgroup2 = fmt.Errorf("it is not mounted (%w)", errors.ErrUnsupported)

// findMount finds where the root of a file system of a type is mounted, best
// at the usual place; "" when it is not.
func findMount(mountinfo []byte, fstype, usual string) (best string) {
	for line := range bytes.Lines(mountinfo) {
		m, ok := parseMount(line)
		if ok && m.fstype == fstype && m.root == "/" && (best == "" || m.point == usual) {
			best = m.point
		}
	}
	return best
}

type mount struct {
	root, point, fstype string
}

// parseMount reads a line of proc_pid_mountinfo(5).
func parseMount(line []byte) (m mount, ok bool) {
	mine, super, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" - "))
	fields, types := bytes.Split(mine, []byte(" ")), bytes.Split(super, []byte(" "))
	if !ok || len(fields) < 6 || len(types) < 2 || len(types[0]) == 0 {
		return m, false
	}
	m = mount{root: unescape(fields[3]), point: unescape(fields[4]), fstype: string(types[0])}
	return m, filepath.IsAbs(m.point)
}

// unescape undoes mangle() of fs/seq_file.c: white space and backslashes are
// three octal digits.
func unescape(b []byte) string {
	var out []byte
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+4 <= len(b) {
			if n, err := strconv.ParseUint(string(b[i+1:i+4]), 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}

var errNotOurs = errors.New("others than its owner may write there")

// trusted refuses a folder in which another user could have pinned a program
// of his, or could put another folder in its place. One that does not exist is
// fs.ErrNotExist.
func trusted(dir string) error {
	var fst unix.Statfs_t
	if err := unix.Statfs(dir, &fst); err != nil {
		return &fs.PathError{Op: "use", Path: dir, Err: err}
	}
	if uint32(fst.Type) != unix.BPF_FS_MAGIC {
		return &fs.PathError{Op: "use", Path: dir, Err: errors.New("not on a bpffs")}
	}
	var device uint64
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return &fs.PathError{Op: "use", Path: at, Err: err}
		}
		if device == 0 {
			device = st.Dev
		}
		switch {
		case st.Dev != device: // above the bpffs
			return nil
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return &fs.PathError{Op: "use", Path: at, Err: unix.ENOTDIR}
		case st.Uid != uint32(os.Geteuid()) && st.Uid != 0,
			// In a sticky folder others cannot rename what is not theirs.
			st.Mode&0o022 != 0 && (at == filepath.Clean(dir) || st.Mode&unix.S_ISVTX == 0):
			return &fs.PathError{Op: "use", Path: at, Err: errNotOurs}
		}
	}
}

// makeDir makes a folder for its owner alone, unless it is there.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return trusted(dir)
}
