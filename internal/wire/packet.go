package wire

import (
	"encoding/binary"
	"time"
)

// Packet is what a Capture hands over. Its Data is valid until the next one.
type Packet struct {
	Time      time.Time // when the kernel saw it, wall clock
	Data      []byte    // from the network header on, perhaps cut short
	Length    int       // of the whole packet, from the network header on
	Interface int32     // index
	Hardware  uint16    // ARPHRD_ type of the interface
	Protocol  uint16    // EtherType
	Type      uint8     // PACKET_HOST, PACKET_OUTGOING, … (packet(7))
	AddrLen   uint8     // of the sender's hardware address
	Addr      [8]byte
}

// Segment takes the packet apart; as [Parse] does.
func (p *Packet) Segment(s *Segment) Skip {
	s.Time, s.Interface = p.Time, p.Interface
	return parseNetwork(p.Protocol, p.Data, p.Length, s)
}

// appendSLL2 appends the packet as capture files have it: a cooked header
// (https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html) and the data.
func (p *Packet) appendSLL2(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, p.Protocol)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(p.Interface))
	b = binary.BigEndian.AppendUint16(b, p.Hardware)
	b = append(b, p.Type, p.AddrLen)
	b = append(b, p.Addr[:]...)
	return append(b, p.Data...)
}
