package wire

import (
	"encoding/binary"
	"net/netip"
)

// Link is how a packet begins, by its number in capture files
// (https://www.tcpdump.org/linktypes.html).
type Link uint16

// The links that Parse knows.
const (
	LinkNull     Link = 0   // BSD loopback: the family in the capturing host's byte order
	LinkEthernet Link = 1   // IEEE 802.3, with VLAN tags
	LinkRawBSD   Link = 12  // an IP header, as some systems number it
	LinkRaw      Link = 101 // an IP header
	LinkLoop     Link = 108 // OpenBSD loopback: the family in network byte order
	LinkSLL      Link = 113 // Linux cooked capture
	LinkIPv4     Link = 228
	LinkIPv6     Link = 229
	LinkSLL2     Link = 276 // Linux cooked capture v2
)

// Skip says why a packet gives no segment.
type Skip uint8

// The reasons.
const (
	Taken       Skip = iota // it gives one
	NotTCP                  // another protocol, or headers that cannot be
	Fragment                // of an IP packet, and not the first
	Truncated               // captured too short for its headers
	UnknownLink             // on a kind of link that Parse does not know
	skips
)

// EtherTypes, and the protocol numbers of IP (RFC 8200 section 4).
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8

	protoHopByHop    = 0
	protoTCP         = 6
	protoRouting     = 43
	protoFragment    = 44
	protoAuth        = 51
	protoDestination = 60
	protoMobility    = 135
)

// Parse takes the headers of a packet apart and fills in s, but for Time and,
// where the link does not tell, Interface. b may be cut short after the TCP
// header; length is that of the whole packet.
func Parse(link Link, b []byte, length int, s *Segment) Skip {
	var proto uint16
	var header int
	switch link {
	case LinkEthernet:
		if len(b) < 14 {
			return Truncated
		}
		proto, header = binary.BigEndian.Uint16(b[12:]), 14
	case LinkSLL:
		if len(b) < 16 {
			return Truncated
		}
		proto, header = binary.BigEndian.Uint16(b[14:]), 16
	case LinkSLL2:
		if len(b) < 20 {
			return Truncated
		}
		proto, header = binary.BigEndian.Uint16(b), 20
		s.Interface = int32(binary.BigEndian.Uint32(b[4:]))
	case LinkNull, LinkLoop:
		header = 4 // the family is written in many ways: the IP version tells
	case LinkRaw, LinkRawBSD, LinkIPv4, LinkIPv6:
	default:
		return UnknownLink
	}
	if len(b) <= header {
		return Truncated
	}
	return parseNetwork(proto, b[header:], length-header, s)
}

// parseNetwork reads what follows the header of a link that carries the
// protocol; 0 when the link does not tell.
func parseNetwork(proto uint16, b []byte, length int, s *Segment) Skip {
	for proto == etherVLAN || proto == etherQinQ {
		if len(b) < 4 {
			return Truncated
		}
		proto = binary.BigEndian.Uint16(b[2:])
		b, length = b[4:], length-4
	}
	if proto != 0 && proto != etherIPv4 && proto != etherIPv6 {
		return NotTCP
	}
	return parseIP(b, length, s)
}

// parseIP reads a packet from its IP header on. length is the packet's own:
// offloading makes packets whose IP length field is too small for them, and 0.
func parseIP(b []byte, length int, s *Segment) Skip {
	if len(b) == 0 {
		return Truncated
	}
	var src, dst netip.Addr
	var total int // bytes after the IP header
	switch b[0] >> 4 {
	case 4: // RFC 791 section 3.1
		const minHeader, fragmentOffset = 20, 0x1fff
		if len(b) < minHeader {
			return Truncated
		}
		header := int(b[0]&0xf) * 4
		if header < minHeader || b[9] != protoTCP {
			return NotTCP
		}
		if binary.BigEndian.Uint16(b[6:])&fragmentOffset != 0 {
			return Fragment
		}
		if len(b) < header {
			return Truncated
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if total = int(binary.BigEndian.Uint16(b[2:])); total == 0 {
			total = length
		}
		total -= header
		b = b[header:]
	case 6: // RFC 8200 section 3
		const header = 40
		if len(b) < header {
			return Truncated
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if total = int(binary.BigEndian.Uint16(b[4:])); total == 0 {
			total = length - header
		}
		next := b[6]
		b = b[header:]
		var skip Skip
		if b, total, skip = skipExtensions(next, b, total); skip != Taken {
			return skip
		}
	default:
		return NotTCP
	}
	return parseTCP(b, total, src, dst, s)
}

// skipExtensions passes the extension headers of an IPv6 packet
// (RFC 8200 section 4).
func skipExtensions(next byte, b []byte, total int) ([]byte, int, Skip) {
	for next != protoTCP {
		if len(b) < 8 {
			return nil, 0, Truncated
		}
		size := (int(b[1]) + 1) * 8
		switch next {
		case protoHopByHop, protoRouting, protoDestination, protoMobility:
		case protoAuth: // RFC 4302 section 2.2 counts in words of four bytes
			size = (int(b[1]) + 2) * 4
		case protoFragment:
			if size = 8; binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return nil, 0, Fragment
			}
		default:
			return nil, 0, NotTCP
		}
		if len(b) < size {
			return nil, 0, Truncated
		}
		next, b, total = b[0], b[size:], total-size
	}
	return b, total, Taken
}

// parseTCP reads a TCP header (RFC 9293 section 3.1). total counts the bytes
// of header and data.
func parseTCP(b []byte, total int, src, dst netip.Addr, s *Segment) Skip {
	const minHeader = 20
	if len(b) < minHeader {
		return Truncated
	}
	header := int(b[12]>>4) * 4
	if header < minHeader || total < header {
		return NotTCP
	}
	s.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	s.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	s.Seq = binary.BigEndian.Uint32(b[4:])
	s.Ack = binary.BigEndian.Uint32(b[8:])
	s.Flags = Flags(b[13])
	s.Window = binary.BigEndian.Uint16(b[14:])
	s.Payload = uint32(total - header)
	return Taken
}
