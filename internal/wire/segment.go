package wire

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Segment is what the headers of one TCP segment tell. Offloading may put the
// data of several segments into one.
type Segment struct {
	Time      time.Time // when the kernel saw it, wall clock
	Src, Dst  netip.AddrPort
	Seq, Ack  uint32
	Payload   uint32 // bytes of data, also those that were not captured
	Interface int32  // where it was captured, 0 when not known
	Window    uint16 // unscaled
	Flags     Flags
}

// String is one line for messages.
func (s Segment) String() string {
	return fmt.Sprintf("%s %v > %v %v seq %d ack %d win %d len %d",
		s.Time.Format("15:04:05.000000"), s.Src, s.Dst, s.Flags, s.Seq, s.Ack, s.Window, s.Payload)
}

// end is the sequence number after the segment's last (RFC 9293 section 3.4).
func (s *Segment) end() uint32 {
	end := s.Seq + s.Payload
	if s.Flags.Has(SYN) {
		end++
	}
	if s.Flags.Has(FIN) {
		end++
	}
	return end
}

// before compares sequence numbers (RFC 9293 section 3.4: they wrap).
func before(a, b uint32) bool { return int32(a-b) < 0 }

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
