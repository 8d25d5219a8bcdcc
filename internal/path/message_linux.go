package path

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// message is one netlink message; its data is that after the header.
type message struct {
	kind, flags uint16
	seq         uint32
	data        []byte
}

// next splits the first message off a datagram. ok is false when there is
// none, or it is cut short.
func next(b []byte) (m message, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlMsghdr {
		return message{}, nil, false
	}
	size := uint64(binary.NativeEndian.Uint32(b))
	if size < unix.SizeofNlMsghdr || size > uint64(len(b)) {
		return message{}, nil, false
	}
	m = message{
		kind:  binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		data:  b[unix.SizeofNlMsghdr:size],
	}
	return m, b[min(align(int(size)), len(b)):], true
}

// attributes gives type and payload of each attribute up to the first that is
// cut short.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
			if !yield(binary.NativeEndian.Uint16(b[2:])&^flags, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// nexthops gives the interface of each struct rtnexthop in RTA_MULTIPATH.
func nexthops(b []byte) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for len(b) >= unix.SizeofRtNexthop {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtNexthop || size > len(b) || !yield(binary.NativeEndian.Uint32(b[4:])) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// Messages are built from their tail: the header's length is filled in last.

func begin(b []byte, kind, flags uint16, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b[:0], 0)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	return binary.NativeEndian.AppendUint32(b, 0)
}

func finish(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func appendByte(b []byte, kind uint16, v byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtAttr+1)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, v, 0, 0, 0) // aligned
}

func appendUint32(b []byte, kind uint16, v uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtAttr+4)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint32(b, v)
}

func appendAddr(b []byte, kind uint16, a netip.Addr) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtAttr+uint16(a.BitLen()/8))
	b = binary.NativeEndian.AppendUint16(b, kind)
	if a.Is4() {
		ip := a.As4()
		return append(b, ip[:]...)
	}
	ip := a.As16()
	return append(b, ip[:]...)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addrOf reads an address whose length agrees with the family.
func addrOf(family byte, b []byte) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(b)
	return a, ok && (family == unix.AF_INET && len(b) == 4 || family == unix.AF_INET6 && len(b) == 16)
}

func uint32Of(b []byte) (uint32, bool) {
	if len(b) < 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(b), true
}

// align rounds up as NLMSG_ALIGN and RTA_ALIGN do.
func align(n int) int { return (n + 3) &^ 3 }
