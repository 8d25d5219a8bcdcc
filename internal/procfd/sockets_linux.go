package procfd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// FS is a view of procfs. It holds nothing open and is safe for concurrent
// use.
type FS struct {
	root string
}

// New gives the view of the procfs mounted at root, usually "/proc".
func New(root string) *FS { return &FS{root: root} }

// SocketsOptions says what Sockets visits, and how.
type SocketsOptions struct {
	PIDs    []int32 // processes to visit; nil means all
	Workers int     // threads to share the work; 0 means GOMAXPROCS
}

// Stats counts what Sockets met.
type Stats struct {
	Processes   int // processes visited, without the hidden and vanished ones
	Descriptors int // descriptors read, sockets or not
	Hidden      int // processes whose descriptors we may not see
	Vanished    int // processes and descriptors that went away meanwhile; normal
}

// Missing says what it takes to see what was hidden, "" when nothing was.
func (s Stats) Missing() string {
	if s.Hidden == 0 {
		return ""
	}
	return fmt.Sprintf("descriptors of %d processes are hidden (needs CAP_SYS_PTRACE or their user)", s.Hidden)
}

// Sockets calls found for every descriptor that is a socket. Calls come
// concurrently, each worker (from 0 to Workers-1) one at a time, so a result
// per worker needs no lock. Threads share the descriptors of their process and
// are not visited by themselves. A socket held by several descriptors or
// processes is found several times. What it met is also told along with an
// error, which is that of ctx or of reading the root.
func (f *FS) Sockets(ctx context.Context, opts SocketsOptions, found func(worker int, inode uint32, o conn.Owner)) (Stats, error) {
	root, err := unix.Open(f.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("list sockets of processes: open %s: %w", f.root, err)
	}
	defer func() { _ = unix.Close(root) }()
	pids := opts.PIDs
	if pids == nil {
		if pids, err = listPIDs(root); err != nil {
			return Stats{}, fmt.Errorf("list sockets of processes: read %s: %w", f.root, err)
		}
	}
	workers := opts.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	w := &walk{ctx: ctx, root: root, pids: pids, found: found,
		chunks: make(chan *chunk, workers-1), free: make(chan *chunk, 2*workers)}
	w.listing.Store(int32(workers))
	stats := make([]Stats, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { stats[i] = w.work(i) })
	}
	wg.Wait()
	var sum Stats
	for _, s := range stats {
		sum.Processes += s.Processes
		sum.Descriptors += s.Descriptors
		sum.Hidden += s.Hidden
		sum.Vanished += s.Vanished
	}
	if err := ctx.Err(); err != nil {
		return sum, fmt.Errorf("list sockets of processes: %w", err)
	}
	return sum, nil
}

// walk is one call of Sockets. Each worker takes process after process and
// lists its descriptors chunk by chunk. Chunks beyond a process's first are
// offered to the others, who look for them once no process is left to take:
// this is what shares out a process that holds nearly all the sockets.
type walk struct {
	ctx     context.Context
	root    int
	pids    []int32
	next    atomic.Int64 // index into pids of the next to take
	listing atomic.Int32 // workers that still list processes; the last closes chunks
	chunks  chan *chunk  // offered to whoever has nothing to do
	free    chan *chunk  // used ones
	found   func(worker int, inode uint32, o conn.Owner)
}

// chunk is a piece of one process's list of descriptors: as many as one
// getdents64 of this size gives, some 300 of them or a millisecond's work.
type chunk struct {
	dir *dir
	n   int
	buf [8192]byte
}

// dir is the open /proc/PID/fd that chunks of it refer to.
type dir struct {
	fd     int
	pid    int32
	refs   atomic.Int32
	hidden atomic.Bool
}

func (d *dir) release() {
	if d.refs.Add(-1) == 0 {
		_ = unix.Close(d.fd)
	}
}

func (w *walk) work(worker int) Stats {
	var s Stats
	for {
		i := w.next.Add(1) - 1
		if i >= int64(len(w.pids)) || w.ctx.Err() != nil {
			break
		}
		w.list(worker, w.pids[i], &s)
	}
	if w.listing.Add(-1) == 0 {
		close(w.chunks)
	}
	for c := range w.chunks {
		w.read(worker, c, &s)
	}
	return s
}

// list reads the list of a process's descriptors, and the descriptors of the
// chunks that nobody else takes.
func (w *walk) list(worker int, pid int32, s *Stats) {
	var name [24]byte
	path := append(strconv.AppendInt(name[:0], int64(pid), 10), "/fd\x00"...)
	fd, errno := openDir(w.root, path)
	if errno != 0 {
		count(errno, s)
		return
	}
	d := &dir{fd: fd, pid: pid}
	d.refs.Store(1)
	defer d.release()
	s.Processes++
	for first := true; w.ctx.Err() == nil && !d.hidden.Load(); first = false {
		c := w.get()
		n, err := unix.Getdents(fd, c.buf[:])
		if err != nil || n <= 0 {
			w.put(c)
			if err != nil {
				var errno unix.Errno
				errors.As(err, &errno)
				s.Processes--
				count(errno, s)
			}
			return
		}
		c.dir, c.n = d, n
		d.refs.Add(1)
		if !first {
			select {
			case w.chunks <- c:
				continue
			default:
			}
		}
		w.read(worker, c, s)
	}
}

// read looks at every descriptor of a chunk.
func (w *walk) read(worker int, c *chunk, s *Stats) {
	d := c.dir
	defer w.put(c)
	defer d.release()
	if w.ctx.Err() != nil {
		return
	}
	var link [linkSize]byte
	for rest := c.buf[:c.n]; ; {
		var name []byte
		if name, rest = nextEntry(rest); name == nil {
			return
		}
		number, ok := parseInt32(name[:len(name)-1])
		if !ok {
			continue // "." and ".."
		}
		n, errno := readlinkat(d.fd, name, link[:])
		switch errno {
		case 0:
		case unix.EACCES, unix.EPERM:
			// The folder may be open to its user while ptrace(2) is not.
			if d.hidden.CompareAndSwap(false, true) {
				s.Processes--
				s.Hidden++
			}
			return
		default:
			s.Vanished++
			continue
		}
		s.Descriptors++
		if inode, ok := parseSocket(link[:n]); ok {
			w.found(worker, inode, conn.Owner{PID: d.pid, FD: number})
		}
	}
}

func (w *walk) get() *chunk {
	select {
	case c := <-w.free:
		return c
	default:
		return new(chunk)
	}
}

func (w *walk) put(c *chunk) {
	c.dir = nil
	select {
	case w.free <- c:
	default:
	}
}

func count(errno unix.Errno, s *Stats) {
	if errno == unix.EACCES || errno == unix.EPERM {
		s.Hidden++
	} else {
		s.Vanished++ // ENOENT, ESRCH
	}
}

// listPIDs reads the numbers in the root.
func listPIDs(root int) ([]int32, error) {
	pids := make([]int32, 0, 512)
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(root, buf)
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return pids, nil
		}
		for rest := buf[:n]; ; {
			var name []byte
			if name, rest = nextEntry(rest); name == nil {
				break
			}
			if pid, ok := parseInt32(name[:len(name)-1]); ok {
				pids = append(pids, pid)
			}
		}
	}
}

func (f *FS) path(pid int32, name string) string {
	return filepath.Join(f.root, strconv.Itoa(int(pid)), name)
}
