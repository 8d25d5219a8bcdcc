package sockdiag

import (
	"encoding/binary"
	"fmt"
	"math"

	"deadpeer/internal/conn"
)

// Operations of enum in linux/inet_diag.h. An operation is a struct
// inet_diag_bc_op {code u8, yes u8, no u16} in host byte order, its arguments
// after it; yes and no are offsets from its start.
const (
	bcJump       = 1  // goes to no
	bcLocalAtL   = 2  // INET_DIAG_BC_S_GE; the port is the no of a second op
	bcLocalAtM   = 3  // INET_DIAG_BC_S_LE
	bcPeerAtL    = 4  // INET_DIAG_BC_D_GE
	bcPeerAtM    = 5  // INET_DIAG_BC_D_LE
	bcLocalHost  = 7  // INET_DIAG_BC_S_COND; struct inet_diag_hostcond
	bcPeerHost   = 8  // INET_DIAG_BC_D_COND
	bcDev        = 9  // u32 interface index
	bcMark       = 10 // u32 mark, u32 mask; Linux 4.4, CAP_NET_ADMIN
	bcCgroup     = 13 // u64 id; Linux 5.9
	bcOpLen      = 4
	bcMaxProgram = math.MaxUint16 - 8 // an nlattr's length, header and rejecting jump included, is a u16
)

// compile turns a filter into a program for INET_DIAG_REQ_BYTECODE. Equality
// of ports is a host condition without an address, as ss does it, and so
// needs no operation younger than Linux 4.4 but those of KernelSupport.
// A nil filter, and one too long for a netlink attribute, gives nil: what
// the kernel does not test, the caller does.
//
// inet_diag_bc_audit asks that the yes offsets alone lead through the whole
// program and that every no lands on an operation of that path or at its end.
// So yes is always the next operation, and a test that fails jumps. Falling
// off the end accepts; four bytes beyond it reject.
func compile(k *conn.KernelFilter) ([]byte, error) {
	if k == nil {
		return nil, nil
	}
	var a assembler
	reject := a.label()
	if err := a.emit(k, reject); err != nil {
		return nil, fmt.Errorf("compile filter: %w", err)
	}
	if len(a.code) == 0 || len(a.code) > bcMaxProgram {
		return nil, nil
	}
	a.at[reject] = len(a.code) + bcOpLen
	for _, j := range a.jumps {
		binary.NativeEndian.PutUint16(a.code[j.op+2:], uint16(a.at[j.to]-j.op))
	}
	return a.code, nil
}

type assembler struct {
	code  []byte
	jumps []jump
	at    []int // where each label is
}

// jump is a no offset yet to be filled in.
type jump struct{ op, to int }

func (a *assembler) label() int {
	a.at = append(a.at, 0)
	return len(a.at) - 1
}

func (a *assembler) place(label int) { a.at[label] = len(a.code) }

// op starts an operation with argLen bytes of arguments and returns them.
func (a *assembler) op(code byte, argLen, no int) []byte {
	at := len(a.code)
	a.jumps = append(a.jumps, jump{at, no})
	a.code = append(a.code, code, byte(bcOpLen+argLen), 0, 0)
	a.code = append(a.code, make([]byte, argLen)...)
	return a.code[at+bcOpLen:]
}

// emit writes code that falls through when k holds and jumps to no when not.
func (a *assembler) emit(k *conn.KernelFilter, no int) error {
	switch k.Op {
	case conn.KernelAll:
		for i := range k.Kids {
			if err := a.emit(&k.Kids[i], no); err != nil {
				return err
			}
		}
		return nil
	case conn.KernelAny:
		yes := a.label()
		for i := range k.Kids {
			last := i == len(k.Kids)-1
			next := no
			if !last {
				next = a.label()
			}
			if err := a.emit(&k.Kids[i], next); err != nil {
				return err
			}
			if !last {
				a.op(bcJump, 0, yes)
				a.place(next)
			}
		}
		a.place(yes)
		return nil
	}
	if !k.Not {
		return a.test(k, no)
	}
	holds := a.label()
	if err := a.test(k, holds); err != nil {
		return err
	}
	a.op(bcJump, 0, no)
	a.place(holds)
	return nil
}

func (a *assembler) test(k *conn.KernelFilter, no int) error {
	switch k.Op {
	case conn.KernelHost:
		return a.host(k, no)
	case conn.KernelPortAtLeast, conn.KernelPortAtMost:
		if k.Port < 0 || k.Port > math.MaxUint16 {
			return fmt.Errorf("port %d out of range", k.Port)
		}
		code := byte(bcLocalAtL)
		if k.Peer {
			code = bcPeerAtL
		}
		if k.Op == conn.KernelPortAtMost {
			code++
		}
		binary.NativeEndian.PutUint16(a.op(code, bcOpLen, no)[2:], uint16(k.Port))
	case conn.KernelDev:
		binary.NativeEndian.PutUint32(a.op(bcDev, 4, no), uint32(k.Value))
	case conn.KernelMark:
		arg := a.op(bcMark, 8, no)
		binary.NativeEndian.PutUint32(arg, uint32(k.Value))
		binary.NativeEndian.PutUint32(arg[4:], k.Mask)
	case conn.KernelCgroup:
		binary.NativeEndian.PutUint64(a.op(bcCgroup, 8, no), k.Value)
	default:
		return fmt.Errorf("unknown operation %d", k.Op)
	}
	return nil
}

// host writes struct inet_diag_hostcond {family u8, prefix_len u8, port s32,
// addr}: the family also says how long the address is, 0 for none.
func (a *assembler) host(k *conn.KernelFilter, no int) error {
	if k.Port < -1 || k.Port > math.MaxUint16 {
		return fmt.Errorf("port %d out of range", k.Port)
	}
	code := byte(bcLocalHost)
	if k.Peer {
		code = bcPeerHost
	}
	var addr []byte
	if k.Host.IsValid() {
		addr = k.Host.Addr().AsSlice()
	}
	arg := a.op(code, 8+len(addr), no)
	switch len(addr) {
	case 4:
		arg[0] = afINET
	case 16:
		arg[0] = afINET6
	}
	if addr != nil {
		arg[1] = byte(k.Host.Bits())
	}
	binary.NativeEndian.PutUint32(arg[4:], uint32(k.Port))
	copy(arg[8:], addr)
	return nil
}
