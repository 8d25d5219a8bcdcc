package testnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Segment is the header of one TCP segment on a link. Offloading may put the
// data of several segments into one.
type Segment struct {
	Time     time.Time // when the kernel received it, wall clock
	From     *Host     // the host that put it on the link, be it a router
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Window   uint16 // unscaled
	Flags    Flags
	Payload  int // bytes of data
}

// String is one line for messages.
func (s Segment) String() string {
	return fmt.Sprintf("%s %v > %v %v seq %d ack %d win %d len %d",
		s.Time.Format("15:04:05.000000"), s.Src, s.Dst, s.Flags, s.Seq, s.Ack, s.Window, s.Payload)
}

// Flags are the control bits of a segment (RFC 9293 section 3.1).
type Flags uint8

// The control bits.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// Has reports whether all bits of want are set.
func (f Flags) Has(want Flags) bool { return f&want == want }

// String gives the names of the bits that are set.
func (f Flags) String() string {
	var names []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"} {
		if f.Has(1 << i) {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// snapLength holds any IPv4 or IPv6 header and TCP header together.
const snapLength = 128

// parseSegment reads a packet that starts with its IP header and may end,
// cut short, any place after its TCP header. ok is false for anything but TCP
// in a whole or first-fragment IPv4 packet or an IPv6 packet without
// extension headers.
func parseSegment(b []byte) (s Segment, ok bool) {
	var src, dst netip.Addr
	var total int // bytes after the IP header
	if len(b) == 0 {
		return s, false
	}
	switch b[0] >> 4 {
	case 4: // RFC 791 section 3.1
		const minHeader, fragmentOffset = 20, 0x1fff
		header := int(b[0]&0xf) * 4
		if header < minHeader || len(b) < header || b[9] != unix.IPPROTO_TCP ||
			binary.BigEndian.Uint16(b[6:])&fragmentOffset != 0 {
			return s, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		total = int(binary.BigEndian.Uint16(b[2:])) - header
		b = b[header:]
	case 6: // RFC 8200 section 3
		const header = 40
		if len(b) < header || b[6] != unix.IPPROTO_TCP {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		total = int(binary.BigEndian.Uint16(b[4:]))
		b = b[header:]
	default:
		return s, false
	}
	const minHeader = 20 // RFC 9293 section 3.1
	if len(b) < minHeader {
		return s, false
	}
	header := int(b[12]>>4) * 4
	if header < minHeader || total < header {
		return s, false
	}
	return Segment{
		Src:     netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		Dst:     netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
		Seq:     binary.BigEndian.Uint32(b[4:]),
		Ack:     binary.BigEndian.Uint32(b[8:]),
		Flags:   Flags(b[13]),
		Window:  binary.BigEndian.Uint16(b[14:]),
		Payload: total - header,
	}, true
}
