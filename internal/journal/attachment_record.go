package journal

import (
	"encoding/binary"

	"deadpeer/internal/conn"
)

// Values are the keepalive options of one socket, in the units of
// setsockopt(2).
type Values struct {
	KeepAlive   bool
	Idle        int32 // TCP_KEEPIDLE, seconds
	Interval    int32 // TCP_KEEPINTVL, seconds
	Probes      int32 // TCP_KEEPCNT
	UserTimeout int32 // TCP_USER_TIMEOUT, milliseconds
}

// Attached is one socket of an attachment.
type Attached struct {
	ID    conn.ID
	Owner conn.Owner // hint: a process and descriptor that held it
	Rule  uint16     // the rule of the attachment that was applied to it
	Was   Values     // before any attachment: what detaching gives back
	Found Values     // before this one; differs when another one was there
	Set   Values     // what this one makes of it
	// Applied says that setting it has come to an end. Until then each value
	// may be Found or Set, and keepalive may be off in between.
	Applied bool
}

type attachedKind uint8

const (
	kindAbout attachedKind = iota + 1
	kindAttached
	kindApplied
	kindForgotten
	kindWhole
	kindPartly
)

// A record of an attachment on disk, little-endian:
//
//	4 length of the body
//	  about: 1 kind, what the attachment says of itself
//	  whole, partly: 1 kind
//	  others: 1 kind, 4 netns, 8 cookie
//	  attached: 4 pid, 4 fd, 2 rule, 3 × (1 on, 4 idle, 4 interval, 4 probes, 4 user timeout)
//	4 CRC32C of length and body
const (
	longFrameSize = 4 + 4
	idSize        = 1 + 4 + 8
	valuesSize    = 1 + 4*4
	attachedSize  = idSize + 4 + 4 + 2 + 3*valuesSize
	// MaxAbout is how much an attachment can say of itself, in bytes.
	MaxAbout = 1 << 20
)

// frame appends a body with its length and checksum.
func frame(b []byte, body func(b []byte) []byte) []byte {
	from := len(b)
	b = body(append(b, 0, 0, 0, 0))
	binary.LittleEndian.PutUint32(b[from:], uint32(len(b)-from-4))
	return binary.LittleEndian.AppendUint32(b, checksum(b[from:]))
}

func appendID(b []byte, kind attachedKind, id conn.ID) []byte {
	b = binary.LittleEndian.AppendUint32(append(b, byte(kind)), id.NetNS)
	return binary.LittleEndian.AppendUint64(b, id.Cookie)
}

func (v Values) append(b []byte) []byte {
	var on byte
	if v.KeepAlive {
		on = 1
	}
	b = append(b, on)
	for _, n := range [...]int32{v.Idle, v.Interval, v.Probes, v.UserTimeout} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}

func decodeValues(b []byte) (v Values, ok bool) {
	n := func(at int) int32 { return int32(binary.LittleEndian.Uint32(b[1+4*at:])) }
	v = Values{KeepAlive: b[0] != 0, Idle: n(0), Interval: n(1), Probes: n(2), UserTimeout: n(3)}
	return v, b[0] <= 1 && min(v.Idle, v.Interval, v.Probes, v.UserTimeout) >= 0
}

// append writes the socket, and that it is applied where it is.
func (a *Attached) append(b []byte) []byte {
	b = frame(b, func(b []byte) []byte {
		b = appendID(b, kindAttached, a.ID)
		le := binary.LittleEndian
		b = le.AppendUint32(b, uint32(a.Owner.PID))
		b = le.AppendUint32(b, uint32(a.Owner.FD))
		b = le.AppendUint16(b, a.Rule)
		return a.Set.append(a.Found.append(a.Was.append(b)))
	})
	if a.Applied {
		b = frame(b, func(b []byte) []byte { return appendID(b, kindApplied, a.ID) })
	}
	return b
}

// apply takes over a body whose checksum was right; false if no attachment of
// this version has such a one.
func (s sockets) apply(body []byte) bool {
	if len(body) < idSize {
		return false
	}
	le := binary.LittleEndian
	id := conn.ID{NetNS: le.Uint32(body[1:]), Cookie: le.Uint64(body[5:])}
	if id.Cookie == 0 {
		return false
	}
	switch kind := attachedKind(body[0]); {
	case kind == kindAttached && len(body) == attachedSize:
		b := body[idSize:]
		a := Attached{
			ID: id, Owner: conn.Owner{PID: int32(le.Uint32(b)), FD: int32(le.Uint32(b[4:]))}, Rule: le.Uint16(b[8:]),
		}
		b = b[10:]
		for _, v := range [...]*Values{&a.Was, &a.Found, &a.Set} {
			var ok bool
			if *v, ok = decodeValues(b); !ok {
				return false
			}
			b = b[valuesSize:]
		}
		s[id] = a
	case kind == kindApplied && len(body) == idSize:
		if a, ok := s[id]; ok {
			a.Applied = true
			s[id] = a
		}
	case kind == kindForgotten && len(body) == idSize:
		delete(s, id)
	default:
		return false
	}
	return true
}

// sockets are those of an attachment.
type sockets map[conn.ID]Attached
