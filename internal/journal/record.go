package journal

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"deadpeer/internal/conn"
)

// Kind is what a record says.
type Kind uint8

// The kinds.
const (
	ReuseAddr Kind = iota + 1 // SO_REUSEADDR is to be put back
	KeepAlive                 // the keepalive options are to be put back
	Restored                  // everything of this connection is as it was
	Rearm                     // SO_KEEPALIVE is to be on again
)

// Record is one entry of a journal: what a socket had before we changed it,
// or that it has it again. Of several originals of one kind for one
// connection the first is the true one, until it is Restored.
type Record struct {
	Kind Kind
	ID   conn.ID
	PID  int32 // hint: a process that held the socket
	FD   int32 // hint: under this descriptor

	ReuseAddr int32 // kind ReuseAddr: the value of SO_REUSEADDR

	KeepAlive bool  // kind KeepAlive: SO_KEEPALIVE was on
	Idle      int32 // kind KeepAlive: TCP_KEEPIDLE, seconds
	Interval  int32 // kind KeepAlive: TCP_KEEPINTVL, seconds
	Probes    int32 // kind KeepAlive: TCP_KEEPCNT
}

// A record on disk, little-endian:
//
//	2 length of the body
//	  1 kind, 4 netns, 8 cookie, 4 pid, 4 fd
//	  ReuseAddr: 4 value
//	  KeepAlive: 1 on, 4 idle, 4 interval, 4 probes
//	4 CRC32C of length and body
const (
	commonSize    = 1 + 4 + 8 + 4 + 4
	frameSize     = 2 + 4
	maxRecordSize = frameSize + commonSize + 13
)

// size is the length of the body, 0 for an unknown kind.
func (r *Record) size() int {
	switch r.Kind {
	case ReuseAddr:
		return commonSize + 4
	case KeepAlive:
		return commonSize + 13
	case Restored, Rearm:
		return commonSize
	default:
		return 0
	}
}

func (r *Record) append(b []byte) []byte {
	from := len(b)
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(r.size()))
	b = append(b, byte(r.Kind))
	b = le.AppendUint32(b, r.ID.NetNS)
	b = le.AppendUint64(b, r.ID.Cookie)
	b = le.AppendUint32(b, uint32(r.PID))
	b = le.AppendUint32(b, uint32(r.FD))
	switch r.Kind {
	case ReuseAddr:
		b = le.AppendUint32(b, uint32(r.ReuseAddr))
	case KeepAlive:
		var on byte
		if r.KeepAlive {
			on = 1
		}
		b = append(b, on)
		b = le.AppendUint32(b, uint32(r.Idle))
		b = le.AppendUint32(b, uint32(r.Interval))
		b = le.AppendUint32(b, uint32(r.Probes))
	}
	return le.AppendUint32(b, checksum(b[from:]))
}

// decode reads a body whose checksum was right; false if no journal of this
// version writes such a one.
func (r *Record) decode(b []byte) bool {
	if len(b) < commonSize {
		return false
	}
	le := binary.LittleEndian
	*r = Record{
		Kind: Kind(b[0]),
		ID:   conn.ID{NetNS: le.Uint32(b[1:]), Cookie: le.Uint64(b[5:])},
		PID:  int32(le.Uint32(b[13:])),
		FD:   int32(le.Uint32(b[17:])),
	}
	if len(b) != r.size() || r.ID.Cookie == 0 {
		return false
	}
	b = b[commonSize:]
	switch r.Kind {
	case ReuseAddr:
		r.ReuseAddr = int32(le.Uint32(b))
	case KeepAlive:
		r.KeepAlive = b[0] != 0
		r.Idle, r.Interval, r.Probes = int32(le.Uint32(b[1:])), int32(le.Uint32(b[5:])), int32(le.Uint32(b[9:]))
		return b[0] <= 1
	}
	return true
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// ledger is what is still to be put back.
type ledger map[conn.ID]originals

// originals are those of one socket, a zero Kind where there is none. A map
// keeps values of this size without allocating for each.
type originals struct {
	reuseAddr, keepAlive Record
	rearm                hint
}

// hint is all that a record of kind Rearm tells.
type hint struct {
	known   bool
	pid, fd int32
}

func (l ledger) apply(r Record) {
	o := l[r.ID]
	switch {
	case r.Kind == Restored:
		delete(l, r.ID)
		return
	case r.Kind == ReuseAddr && o.reuseAddr.Kind == 0:
		o.reuseAddr = r
	case r.Kind == KeepAlive && o.keepAlive.Kind == 0:
		o.keepAlive = r
	case r.Kind == Rearm && !o.rearm.known:
		o.rearm = hint{true, r.PID, r.FD}
	default:
		return
	}
	l[r.ID] = o
}

// records lists them by namespace, cookie and kind.
func (l ledger) records() []Record {
	list := make([]Record, 0, len(l))
	for id, o := range l {
		if o.reuseAddr.Kind != 0 {
			list = append(list, o.reuseAddr)
		}
		if o.keepAlive.Kind != 0 {
			list = append(list, o.keepAlive)
		}
		if h := o.rearm; h.known {
			list = append(list, Record{Kind: Rearm, ID: id, PID: h.pid, FD: h.fd})
		}
	}
	slices.SortFunc(list, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.ID.NetNS, b.ID.NetNS), cmp.Compare(a.ID.Cookie, b.ID.Cookie), cmp.Compare(a.Kind, b.Kind))
	})
	return list
}

// size is at most what the ledger takes on disk.
func (l ledger) size() int64 { return int64(len(l)) * 3 * maxRecordSize }
