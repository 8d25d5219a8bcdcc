package held

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// Taker takes sockets. It keeps a descriptor of each process it met. For one
// goroutine at a time. Close it.
type Taker struct {
	pidfds  map[int32]int
	closing sync.WaitGroup
}

// New gives a Taker.
func New() *Taker { return &Taker{pidfds: map[int32]int{}} }

// Socket is a duplicate of a program's socket. Give it back soon.
type Socket struct{ FD int }

// Take duplicates the socket with that cookie from the first of its owners
// that still has it.
func (t *Taker) Take(cookie uint64, owners []conn.Owner) (Socket, Refusal) {
	refusal := NoOwner
	for _, o := range owners {
		s, r := t.duplicate(o)
		if r == None {
			if r = same(s.FD, cookie); r == None {
				return s, None
			}
			_ = unix.Close(s.FD)
		}
		// A later owner may do; what the first said is what is reported,
		// unless a later one knows better than "gone".
		if refusal == NoOwner || refusal.Gone() {
			refusal = r
		}
	}
	return Socket{-1}, refusal
}

// Cookie reads the cookie of the socket a descriptor holds. ok is false when it
// could not be read.
func (t *Taker) Cookie(o conn.Owner) (cookie uint64, ok bool) {
	s, refusal := t.duplicate(o)
	if refusal != None {
		return 0, false
	}
	defer t.Give(s)
	cookie, err := unix.GetsockoptUint64(s.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
	return cookie, err == nil
}

// Give closes the duplicate. If the owner closed its own meanwhile, ours is
// the last, and with SO_LINGER closing may block for as long as that says
// (inet_release): then it is done aside.
func (t *Taker) Give(s Socket) {
	var linger unix.Linger
	n := uint32(unsafe.Sizeof(linger))
	if s.Getsockopt(unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), &n) == 0 && linger.Onoff != 0 && linger.Linger > 0 {
		t.closing.Go(func() { _ = unix.Close(s.FD) })
		return
	}
	_ = unix.Close(s.FD)
}

// lingerLimit is how long Close waits for closes that linger.
const lingerLimit = 100 * time.Millisecond

// Close releases the process descriptors. A close that lingers, because the
// program has closed its own descriptor meanwhile, is left to end by itself.
func (t *Taker) Close() {
	t.forgetAll()
	closed := make(chan struct{})
	go func() { // ends with the last lingering close
		t.closing.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(lingerLimit):
	}
}

// Get reads an integer option.
func (s Socket) Get(level, opt int) (int, bool) {
	v, err := unix.GetsockoptInt(s.FD, level, opt)
	return v, err == nil
}

// Set sets an integer option; one of keepalive in the way of AsDeadpeer.
func (s Socket) Set(level, opt, value int) (err error) {
	set := func() { err = unix.SetsockoptInt(s.FD, level, opt, value) }
	switch {
	case level == unix.SOL_SOCKET && opt == unix.SO_KEEPALIVE,
		level == unix.IPPROTO_TCP && (opt == unix.TCP_KEEPIDLE || opt == unix.TCP_KEEPINTVL || opt == unix.TCP_KEEPCNT):
		AsDeadpeer(set)
	default:
		set()
	}
	return err
}

// State is the socket's, Close when it cannot be read.
func (s Socket) State() conn.State {
	v, err := unix.GetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_INFO) // its first byte
	if err != nil {
		return conn.Close
	}
	return conn.State(binary.NativeEndian.AppendUint32(make([]byte, 0, 4), uint32(v))[0])
}

// Getsockopt reads an option of any type into the n bytes at p.
func (s Socket) Getsockopt(level, opt int, p unsafe.Pointer, n *uint32) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.FD), uintptr(level), uintptr(opt),
		uintptr(p), uintptr(unsafe.Pointer(n)), 0)
	return errno
}

func (t *Taker) duplicate(o conn.Owner) (Socket, Refusal) {
	pidfd, refusal := t.pidfd(o.PID)
	if refusal != None {
		return Socket{-1}, refusal
	}
	fd, err := unix.PidfdGetfd(pidfd, int(o.FD), 0)
	if err == unix.EPERM && unix.PidfdSendSignal(pidfd, 0, nil, 0) == unix.ESRCH {
		err = unix.ESRCH // Yama refuses to look into a process that has ended (yama_ptrace_access_check)
	}
	if err != nil {
		if err == unix.ESRCH {
			t.forget(o.PID)
		}
		return Socket{-1}, refusalOf(err)
	}
	return Socket{fd}, None
}

func same(fd int, cookie uint64) Refusal {
	got, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err == nil && got == cookie {
		return None
	}
	if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err == unix.ENOPROTOOPT || err == unix.EOPNOTSUPP {
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && p == unix.IPPROTO_MPTCP {
			return MPTCP
		}
	}
	return Reused
}

func refusalOf(err error) Refusal {
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EBADF):
		return OwnerGone
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return NeedsPtrace
	case errors.Is(err, unix.ENOSYS):
		return NeedsKernel
	default:
		return Failed
	}
}

// pidfdLimit bounds the descriptors kept open for processes.
const pidfdLimit = 256

func (t *Taker) pidfd(pid int32) (int, Refusal) {
	if fd, ok := t.pidfds[pid]; ok {
		return fd, None
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	// What has the pid now is a thread: ENOENT from 6.15 on, EINVAL before,
	// and that of a process that is just ending, too (pidfd_prepare).
	if err == unix.ENOENT || err == unix.EINVAL {
		err = unix.ESRCH
	}
	if err != nil {
		return -1, refusalOf(err)
	}
	if len(t.pidfds) >= pidfdLimit {
		t.forgetAll()
	}
	t.pidfds[pid] = fd
	return fd, None
}

func (t *Taker) forget(pid int32) {
	if fd, ok := t.pidfds[pid]; ok {
		_ = unix.Close(fd)
		delete(t.pidfds, pid)
	}
}

func (t *Taker) forgetAll() {
	for pid := range t.pidfds {
		t.forget(pid)
	}
}
