package probe

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
)

// infoLen reaches to the end of tcpi_segs_in in struct tcp_info.
const infoLen = 144

// hold takes a duplicate of the target's socket. Give it back soon.
func (a *Asker) hold(t Target) (held.Socket, Refusal) {
	s, refusal := a.taker.Take(t.ID.Cookie, t.Owners)
	return s, refusalOf(refusal)
}

func refusalOf(r held.Refusal) Refusal {
	switch r {
	case held.None:
		return NotRefused
	case held.NoOwner:
		return NoOwner
	case held.Hidden:
		return Hidden
	case held.OwnerGone:
		return OwnerGone
	case held.Reused:
		return Reused
	case held.MPTCP:
		return MPTCPSocket
	case held.NeedsPtrace:
		return NeedsPtrace
	case held.NeedsKernel:
		return NeedsKernel
	}
	return Failed
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

func readInfo(s held.Socket, buf *[infoLen]byte) (info, bool) {
	n := uint32(infoLen)
	if s.Getsockopt(unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(buf), &n) != 0 || n < infoLen {
		return info{}, false
	}
	u32 := func(at int) uint32 { return *(*uint32)(unsafe.Pointer(&buf[at])) }
	return info{
		state: conn.State(buf[0]), probes: buf[3], unacked: u32(24),
		heardMS: min(u32(52), u32(56)), segsOut: u32(136), segsIn: u32(140),
	}, true
}
