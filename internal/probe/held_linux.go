package probe

import (
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// infoLen reaches to the end of tcpi_segs_in in struct tcp_info.
const infoLen = 144

// held is our duplicate of a program's socket. While it is open the owner's
// close sends no FIN, so it is kept for microseconds, one at a time.
type held struct{ fd int }

// hold takes a duplicate of the socket from the first of its owners that
// still has it, and makes sure by the cookie that it is the socket meant.
func (a *Asker) hold(t Target) (held, Refusal) {
	refusal := NoOwner
	for _, o := range t.Owners {
		pidfd, r := a.pidfd(o.PID)
		if r == NotRefused {
			var fd int
			var err error
			if fd, err = unix.PidfdGetfd(pidfd, int(o.FD), 0); err == nil {
				if r = sameSocket(fd, t.ID.Cookie); r == NotRefused {
					return held{fd}, NotRefused
				}
				_ = unix.Close(fd)
			} else {
				r = refusalOf(err)
				if err == unix.ESRCH {
					a.forget(o.PID)
				}
			}
		}
		// A later owner may do; what the first said is what is reported,
		// unless a later one knows better than "gone".
		if refusal == NoOwner || refusal == OwnerGone || refusal == Reused {
			refusal = r
		}
	}
	return held{-1}, refusal
}

func sameSocket(fd int, cookie uint64) Refusal {
	got, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err == nil && got == cookie {
		return NotRefused
	}
	if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err == unix.ENOPROTOOPT || err == unix.EOPNOTSUPP {
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && p == unix.IPPROTO_MPTCP {
			return MPTCPSocket
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

// lingerLimit is how long Close waits for closes that linger.
const lingerLimit = 100 * time.Millisecond

// release closes the duplicate. If the owner closed its own meanwhile, ours
// is the last, and with SO_LINGER closing may block for as long as that says
// (inet_release): then it is done aside.
func (a *Asker) release(h held) {
	var linger unix.Linger
	n := uint32(unsafe.Sizeof(linger))
	if getsockopt(h.fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), &n) == 0 && linger.Onoff != 0 && linger.Linger > 0 {
		a.closing.Go(func() { _ = unix.Close(h.fd) })
		return
	}
	_ = unix.Close(h.fd)
}

// info is what a question needs of struct tcp_info.
type info struct {
	state   conn.State
	probes  uint8
	unacked uint32
	heardMS uint32
	segsOut uint32
	segsIn  uint32
}

func (h held) info(buf *[infoLen]byte) (info, bool) {
	n := uint32(infoLen)
	if getsockopt(h.fd, unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(buf), &n) != 0 || n < infoLen {
		return info{}, false
	}
	u32 := func(at int) uint32 { return *(*uint32)(unsafe.Pointer(&buf[at])) }
	return info{
		state: conn.State(buf[0]), probes: buf[3], unacked: u32(24),
		heardMS: min(u32(52), u32(56)), segsOut: u32(136), segsIn: u32(140),
	}, true
}

func (h held) get(level, opt int) (int, bool) {
	v, err := unix.GetsockoptInt(h.fd, level, opt)
	return v, err == nil
}

func (h held) set(level, opt, value int) error {
	return unix.SetsockoptInt(h.fd, level, opt, value)
}

func getsockopt(fd, level, opt int, p unsafe.Pointer, n *uint32) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(p), uintptr(unsafe.Pointer(n)), 0)
	return errno
}

// pidfdLimit bounds the descriptors kept open for processes.
const pidfdLimit = 256

func (a *Asker) pidfd(pid int32) (int, Refusal) {
	if fd, ok := a.pidfds[pid]; ok {
		return fd, NotRefused
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return -1, refusalOf(err)
	}
	if len(a.pidfds) >= pidfdLimit {
		a.forgetAll()
	}
	a.pidfds[pid] = fd
	return fd, NotRefused
}

func (a *Asker) forget(pid int32) {
	if fd, ok := a.pidfds[pid]; ok {
		_ = unix.Close(fd)
		delete(a.pidfds, pid)
	}
}

func (a *Asker) forgetAll() {
	for pid := range a.pidfds {
		a.forget(pid)
	}
}
