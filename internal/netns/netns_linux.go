// Package netns opens network namespaces and runs code inside them. A thread
// that entered a namespace never goes back to the scheduler changed: it is
// put back, or thrown away. Linux only; needs CAP_SYS_ADMIN over the target
// namespace's user namespace to enter (setns(2)), nothing to look.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// NS is an open handle on a network namespace. It pins the namespace: close
// it when the namespace's last process has gone. Safe for concurrent use
// until Close.
type NS struct {
	file  *os.File
	inode uint32
	name  string
}

// Current opens the namespace of the calling thread.
func Current() (*NS, error) { return open("/proc/thread-self/ns/net", "current") }

// FromPath opens a namespace by a file such as /run/netns/NAME.
func FromPath(path string) (*NS, error) { return open(path, path) }

// NamedDir is where ip-netns(8) keeps the namespaces it names.
const NamedDir = "/run/netns"

// FromName opens a namespace by its name of ip-netns(8).
func FromName(name string) (*NS, error) {
	n, err := FromPath(filepath.Join(NamedDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open network namespace %q: %s has none of that name (ip netns list): %w", name, NamedDir, fs.ErrNotExist)
	}
	return n, err
}

// FromPID opens the namespace of a process, found below procRoot
// (usually "/proc"). Needs ptrace access to the process (ptrace(2)).
func FromPID(procRoot string, pid int) (*NS, error) {
	return open(filepath.Join(procRoot, strconv.Itoa(pid), "ns/net"), "pid "+strconv.Itoa(pid))
}

const nsfsMagic = 0x6e736673 // NSFS_MAGIC of linux/magic.h

func open(path, name string) (*NS, error) {
	// O_NONBLOCK: the path may name a FIFO, and opening one would wait.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	var fst unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &fst), unix.Fstat(int(f.Fd()), &st)); err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w", name, err), f.Close())
	}
	if fst.Type != nsfsMagic {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: not a namespace file", name), f.Close())
	}
	return &NS{file: f, inode: uint32(st.Ino), name: name}, nil
}

// Inode identifies the namespace on this host.
func (n *NS) Inode() uint32 { return n.inode }

// Name says where the handle came from, for messages.
func (n *NS) Name() string { return n.name }

// Fd is the descriptor of the handle, owned by n.
func (n *NS) Fd() int { return int(n.file.Fd()) }

// Close releases the handle.
func (n *NS) Close() error { return n.file.Close() }

// Do runs fn on a thread that is inside the namespace and returns its error.
// A panic of fn, or its runtime.Goexit, comes out of Do as if fn had been
// called directly. Sockets fn opens stay in the namespace; goroutines fn
// starts do not run there. Needs CAP_SYS_ADMIN unless the caller is there
// already.
func (n *NS) Do(fn func() error) error {
	var (
		err      error
		returned bool
		panicked any
		stack    []byte
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		leave, enterErr := n.enter()
		if enterErr != nil {
			err, returned = enterErr, true
			return
		}
		defer leave()
		defer func() {
			if panicked = recover(); panicked != nil {
				stack = debug.Stack()
			}
		}()
		err = fn()
		returned = true
	}()
	<-done
	switch {
	case panicked != nil:
		panic(fmt.Sprintf("%v [in network namespace %s]\n%s", panicked, n.name, stack))
	case !returned:
		runtime.Goexit()
	}
	return err
}

// enter locks the calling goroutine to its thread and moves the thread into
// the namespace; leave undoes both. When the thread cannot be moved back it
// stays locked, and the runtime ends a locked thread with its goroutine.
func (n *NS) enter() (leave func(), err error) {
	runtime.LockOSThread()
	home, err := Current()
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	if home.inode != n.inode {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			return nil, errors.Join(fmt.Errorf("enter network namespace %s: %w", n.name, needAdmin(err)), home.Close())
		}
	}
	return func() {
		if home.inode == n.inode || unix.Setns(home.Fd(), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close() // nothing was written to it
	}, nil
}

func needAdmin(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (needs CAP_SYS_ADMIN)", err)
	}
	return err
}

// List opens every distinct network namespace that a process below procRoot
// lives in or that is named in a folder of runDirs (usually /run/netns and
// /run/docker/netns). Processes whose namespace could not be opened, for want
// of ptrace access (ptrace(2)) or of descriptors, are counted in hidden. The
// caller closes the handles.
func List(procRoot string, runDirs ...string) (list []*NS, hidden int, err error) {
	seen := map[uint64]bool{}
	add := func(path, name string) error {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		if seen[st.Ino] {
			return nil
		}
		n, err := open(path, name)
		if err != nil {
			return err
		}
		seen[st.Ino] = true
		list = append(list, n)
		return nil
	}
	if err := add(filepath.Join(procRoot, "thread-self/ns/net"), "current"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("list network namespaces: %w", err)
	}
	// Before the processes: a name says more than a pid.
	for _, dir := range runDirs {
		names, err := os.ReadDir(dir)
		if err != nil {
			continue // no named namespaces here
		}
		for _, e := range names {
			// A name whose mount is gone is an ordinary empty file.
			_ = add(filepath.Join(dir, e.Name()), filepath.Join(dir, e.Name()))
		}
	}
	entries, err := os.ReadDir(procRoot)
	if err != nil {
		for _, n := range list {
			_ = n.Close()
		}
		return nil, 0, fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		err := add(filepath.Join(procRoot, e.Name(), "ns/net"), "pid "+e.Name())
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // else it ended meanwhile
			hidden++
		}
	}
	return list, hidden, nil
}
