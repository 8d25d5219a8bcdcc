package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// dropIn is the file that Set writes. 90 leaves room for files that are meant
// to win, and is after those that distributions ship.
const dropIn = "/etc/sysctl.d/90-deadpeer.conf"

// linux is the sysctls of one network namespace. /proc/sys/net shows the
// namespace of the thread that looks a name up (net_ctl_root), so every access
// is made inside.
type linux struct {
	root  string
	do    func(func() error) error
	files string // why no file is written, "" when one is
}

func newSystem(o Options) (system, error) {
	l := &linux{root: o.Root, do: func(f func() error) error { return f() }}
	if n := o.Netns; n != nil {
		l.do = n.Do
		if !n.Boot {
			l.files = "the files of this host are not for this network namespace: at its start it gets the kernel's defaults"
		}
	}
	return l, nil
}

func (*linux) parameters() []Parameter { return linuxParameters() }

func (*linux) told() bool { return true }

func (l *linux) file() (path, why string) {
	if l.files != "" {
		return "", l.files
	}
	return dropIn, ""
}

// open opens the file of a sysctl inside the namespace.
func (l *linux) open(name string, flag int) (f *os.File, err error) {
	err = l.do(func() error {
		f, err = os.OpenFile("/proc/sys/"+sysctlPath(name), flag|unix.O_CLOEXEC, 0)
		return err
	})
	return f, err
}

func (l *linux) get(name string) (value string, present bool, err error) {
	f, err := l.open(name, os.O_RDONLY)
	if err != nil {
		return "", false, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 64)
	n, err := f.Read(b)
	if err != nil {
		return "", false, err
	}
	return strings.TrimSpace(string(b[:n])), true, nil
}

func (l *linux) set(name, value string) error {
	f, err := l.open(name, os.O_WRONLY)
	if err != nil {
		return needsNetAdmin(err)
	}
	// In one write: the kernel takes each for a value of its own.
	_, err = f.WriteString(value)
	return errors.Join(needsNetAdmin(err), f.Close())
}

func (*linux) unset(name string) error {
	return fmt.Errorf("%s: %w: a sysctl always has a value", name, errors.ErrUnsupported)
}

func (l *linux) writable(name string) error {
	f, err := l.open(name, os.O_WRONLY)
	if err != nil {
		return needsNetAdmin(err)
	}
	return f.Close()
}

func needsNetAdmin(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN over the network namespace)", err)
	}
	return denied(err)
}

func (*linux) bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// boot reads what both programs would read.
func (l *linux) boot(file *content) (bootView, error) {
	// sd_booted(3) looks for this folder, too.
	mine, other := systemd, procps
	if _, err := os.Stat(filepath.Join(l.root, "run/systemd/system")); err != nil {
		mine, other = procps, systemd
	}
	files, err := l.confFiles()
	if err != nil {
		return bootView{reader: string(mine), other: string(other)}, fmt.Errorf("read sysctl.d: %w", err)
	}
	if file != nil {
		files = overlay(files, *file)
	}
	return bootView{
		reader: string(mine), other: string(other),
		winner: func(p Parameter) (Persisted, bool) { return mine.winner(p, files) },
		second: func(p Parameter) (Persisted, bool) { return other.winner(p, files) },
	}, nil
}

// overlay gives the files as they are once ours has that content.
func overlay(files []confFile, c content) (list []confFile) {
	ours := confFile{dir: filepath.Dir(dropIn), name: filepath.Base(dropIn), content: c.bytes}
	for _, f := range files {
		if f.dir != ours.dir || f.name != ours.name {
			list = append(list, f)
		}
	}
	if !c.absent {
		list = append(list, ours)
	}
	return list
}

// confFiles reads all files that a reader may look at, but for those that a
// symlinked folder would give twice (/lib on a merged /usr).
func (l *linux) confFiles() (list []confFile, err error) {
	var seen []os.FileInfo
	for _, dir := range confDirs() {
		info, err := os.Stat(filepath.Join(l.root, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		twice := false
		for _, s := range seen {
			twice = twice || os.SameFile(s, info)
		}
		if twice {
			continue
		}
		seen = append(seen, info)
		entries, err := os.ReadDir(filepath.Join(l.root, dir))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".conf") {
				continue
			}
			f, err := l.confFile(dir, e.Name())
			if err != nil {
				return nil, err
			}
			list = append(list, f)
		}
	}
	if _, err := os.Lstat(filepath.Join(l.root, sysctlConf)); err == nil {
		f, err := l.confFile("", strings.TrimPrefix(sysctlConf, "/etc/"))
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

// confFile reads one file. What both readers would not get anything from
// masks files of its name.
func (l *linux) confFile(dir, name string) (confFile, error) {
	f := confFile{dir: dir, name: name}
	fd, err := openInRoot(l.root, f.path())
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP):
		f.masked = true
		return f, nil
	case err != nil:
		return f, err
	}
	defer func() { _ = fd.Close() }()
	if st, err := fd.Stat(); err != nil || !st.Mode().IsRegular() {
		f.masked = true
		return f, err
	}
	f.content, err = readAll(fd)
	return f, err
}

// openInRoot opens a file as a process would whose root folder that is:
// absolute symlinks begin there, too (openat2(2), RESOLVE_IN_ROOT).
func openInRoot(root, path string) (*os.File, error) {
	if root == "/" {
		return openRead(path)
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	fd, err := unix.Openat2(int(dir.Fd()), strings.TrimPrefix(path, "/"), &how)
	if err != nil {
		return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
