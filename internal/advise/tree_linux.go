package advise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// tree is the file system below a folder. Links, absolute ones too, stay
// inside (openat2(2), RESOLVE_IN_ROOT): the folder may be a container's root,
// whose links its owner chooses.
type tree struct{ root string }

func newTree(root string) fs.FS { return tree{root} }

// Open opens name below the root, if it is a regular file or a folder. What it
// is shows before it is opened: to open a device can start something, such as
// a watchdog, and to open a FIFO wakes whoever writes to it.
func (t tree) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	dir, err := unix.Open(t.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: t.root, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := openInside(dir, filepath.FromSlash(name))
	switch {
	case errors.Is(err, unix.ENOSYS):
		err = fmt.Errorf("openat2 needs Linux 5.6: %w", errors.ErrUnsupported)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w (needs root, or CAP_DAC_READ_SEARCH)", err)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(t.root, name)), nil
}

func openInside(dir int, name string) (int, error) {
	at, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(at) }()
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return -1, errNotRegular
	}
	return unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
}
