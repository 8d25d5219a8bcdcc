package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"deadpeer/internal/conn"
)

// Sizes and numbers of linux/netlink.h, linux/inet_diag.h, linux/sock_diag.h
// and linux/tcp.h. They are part of the kernel's ABI.
const (
	headerLen = 16 // struct nlmsghdr
	attrLen   = 4  // struct nlattr
	sockIDLen = 48 // struct inet_diag_sockid
	diagLen   = 72 // struct inet_diag_msg
	reqV1Len  = 60 // struct inet_diag_req
	reqV2Len  = 56 // struct inet_diag_req_v2

	typeError    = 2  // NLMSG_ERROR
	typeDone     = 3  // NLMSG_DONE
	typeDumpBoth = 18 // TCPDIAG_GETSOCK: one walk for IPv4 and IPv6
	typeByFamily = 20 // SOCK_DIAG_BY_FAMILY
	typeDestroy  = 21 // SOCK_DESTROY

	flagRequest  = 0x01
	flagAck      = 0x04
	flagDumpIntr = 0x10
	flagDump     = 0x300

	extInfo   = 1 << (attrInfo - 1)
	extMemory = 1 << (attrMemory - 1)

	attrByteCode = 1  // INET_DIAG_REQ_BYTECODE
	attrInfo     = 2  // INET_DIAG_INFO
	attrMemory   = 7  // INET_DIAG_SKMEMINFO
	attrMark     = 15 // INET_DIAG_MARK
	attrULP      = 19 // INET_DIAG_ULP_INFO
	attrCgroup   = 21 // INET_DIAG_CGROUP_ID
	ulpName      = 1  // INET_ULP_INFO_NAME

	infoSegsIn = 140 // offset of tcpi_segs_in; with it, struct tcp_info is usable
	infoSndWnd = 228 // offset of tcpi_snd_wnd

	memoryLen = 9 * 4
	protoTCP  = 6
	afINET    = 2
	afINET6   = 10
	noCookie  = ^uint64(0) // INET_DIAG_NOCOOKIE: matches every socket, so never sent
)

var native = binary.NativeEndian

// Memory is a socket's memory (INET_DIAG_SKMEMINFO, sock_diag(7)), in bytes.
type Memory struct {
	ReceiveAllocated uint32
	ReceiveBuffer    uint32
	SendAllocated    uint32
	SendBuffer       uint32
	Forward          uint32
	SendQueued       uint32
	Option           uint32
	Backlog          uint32
	Drops            uint32 // packets, not bytes
}

// header is a netlink message header together with its body.
type header struct {
	kind  uint16
	flags uint16
	seq   uint32
	body  []byte
}

var errShort = errors.New("netlink message shorter than it says")

// next splits the first netlink message off b.
func next(b []byte) (h header, rest []byte, err error) {
	if len(b) < headerLen {
		return header{}, nil, errShort
	}
	n := int(native.Uint32(b))
	if n < headerLen || n > len(b) {
		return header{}, nil, errShort
	}
	h = header{kind: native.Uint16(b[4:]), flags: native.Uint16(b[6:]), seq: native.Uint32(b[8:]), body: b[headerLen:n]}
	return h, b[min(align(n), len(b)):], nil
}

func align(n int) int { return (n + 3) &^ 3 }

// parse decodes the body of an inet_diag message into s, and into m when it
// is not nil. It trusts no length.
func parse(b []byte, s *conn.Sock, m *Memory) error {
	if len(b) < diagLen {
		return fmt.Errorf("inet_diag message of %d bytes, want at least %d", len(b), diagLen)
	}
	*s = conn.Sock{NetNS: s.NetNS}
	switch b[0] {
	case afINET:
		s.Family = conn.IPv4
		s.LocalIP, s.PeerIP = mapped(b[8:12]), mapped(b[24:28])
	case afINET6:
		s.Family = conn.IPv6
		copy(s.LocalIP[:], b[8:24])
		copy(s.PeerIP[:], b[24:40])
	default:
		return fmt.Errorf("inet_diag message of address family %d", b[0])
	}
	s.State, s.Timer, s.Retransmits = conn.State(b[1]), conn.Timer(b[2]), b[3]
	s.LocalPort, s.PeerPort = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	s.Interface = native.Uint32(b[40:])
	s.Cookie = uint64(native.Uint32(b[44:])) | uint64(native.Uint32(b[48:]))<<32
	s.TimerMS = native.Uint32(b[52:])
	s.RecvQueue = native.Uint32(b[56:])
	s.SendQueue = native.Uint32(b[60:])
	s.UID = native.Uint32(b[64:])
	s.Inode = native.Uint32(b[68:])
	if m != nil {
		*m = Memory{}
	}
	for b = b[diagLen:]; len(b) >= attrLen; {
		n := int(native.Uint16(b))
		if n < attrLen || n > len(b) {
			return fmt.Errorf("inet_diag attribute of %d bytes, %d left", n, len(b))
		}
		parseAttr(native.Uint16(b[2:])&0x3fff, b[attrLen:n], s, m)
		b = b[min(align(n), len(b)):]
	}
	return nil
}

// parseAttr takes over what one attribute says; one too short says nothing.
func parseAttr(kind uint16, v []byte, s *conn.Sock, m *Memory) {
	switch {
	case kind == attrInfo && len(v) >= infoSegsIn+4:
		parseInfo(v, s)
	case kind == attrMemory && len(v) >= memoryLen && m != nil:
		*m = Memory{
			ReceiveAllocated: native.Uint32(v), ReceiveBuffer: native.Uint32(v[4:]),
			SendAllocated: native.Uint32(v[8:]), SendBuffer: native.Uint32(v[12:]),
			Forward: native.Uint32(v[16:]), SendQueued: native.Uint32(v[20:]),
			Option: native.Uint32(v[24:]), Backlog: native.Uint32(v[28:]), Drops: native.Uint32(v[32:]),
		}
	case kind == attrMark && len(v) >= 4:
		s.Mark = native.Uint32(v)
	case kind == attrCgroup && len(v) >= 8:
		s.CgroupID = native.Uint64(v)
	case kind == attrULP:
		s.MPTCP = isMPTCP(v)
	}
}

// parseInfo takes what deadpeer needs from struct tcp_info (linux/tcp.h).
// The caller has checked that it reaches as far as tcpi_segs_in.
func parseInfo(v []byte, s *conn.Sock) {
	s.HasInfo = true
	s.Probes, s.Backoff = v[3], v[4]
	s.RTOUS = native.Uint32(v[8:])
	s.Unacked = native.Uint32(v[24:])
	s.LastDataSent = native.Uint32(v[44:])
	s.LastDataRecv = native.Uint32(v[52:])
	s.LastAckRecv = native.Uint32(v[56:])
	s.RTTUS = native.Uint32(v[68:])
	s.RTTVarUS = native.Uint32(v[72:])
	s.SegsOut = native.Uint32(v[136:])
	s.SegsIn = native.Uint32(v[infoSegsIn:])
	if len(v) >= infoSndWnd+4 {
		s.HasWindow = true
		s.SendWindow = native.Uint32(v[infoSndWnd:])
	}
}

// isMPTCP reports whether the upper-layer protocol of a socket is "mptcp".
func isMPTCP(v []byte) bool {
	for len(v) >= attrLen {
		n := int(native.Uint16(v))
		if n < attrLen || n > len(v) {
			return false
		}
		if native.Uint16(v[2:])&0x3fff == ulpName {
			return string(trimNUL(v[attrLen:n])) == "mptcp"
		}
		v = v[min(align(n), len(v)):]
	}
	return false
}

func trimNUL(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

func mapped(ip4 []byte) (ip [16]byte) {
	ip[10], ip[11] = 0xff, 0xff
	copy(ip[12:], ip4)
	return ip
}

// putHeader starts a netlink message at the end of b and returns the offset
// at which its length has to be filled in by finish.
func putHeader(b []byte, kind, flags uint16, seq uint32) ([]byte, int) {
	at := len(b)
	b = native.AppendUint32(b, 0)
	b = native.AppendUint16(b, kind)
	b = native.AppendUint16(b, flags)
	b = native.AppendUint32(b, seq)
	return native.AppendUint32(b, 0), at
}

func finish(b []byte, at int) []byte {
	native.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

// dumpRequest asks for every socket in the states, of both families.
func dumpRequest(b []byte, states conn.States, ext uint8, code []byte, seq uint32) []byte {
	b, at := putHeader(b, typeDumpBoth, flagRequest|flagDump, seq)
	b = append(b, 0, 0, 0, ext)
	b = append(b, make([]byte, sockIDLen)...)
	b = native.AppendUint32(b, uint32(states))
	b = native.AppendUint32(b, 0)
	if len(code) > 0 {
		b = native.AppendUint16(b, uint16(attrLen+len(code)))
		b = native.AppendUint16(b, attrByteCode)
		b = append(b, code...)
	}
	return finish(b, at)
}

// oneRequest names exactly the socket s, cookie included.
func oneRequest(b []byte, kind, flags uint16, ext uint8, s *conn.Sock, seq uint32) []byte {
	b, at := putHeader(b, kind, flagRequest|flags, seq)
	family := byte(afINET)
	if s.Family == conn.IPv6 {
		family = afINET6
	}
	b = append(b, family, protoTCP, ext, 0)
	b = native.AppendUint32(b, uint32(conn.AllStates))
	b = binary.BigEndian.AppendUint16(b, s.LocalPort)
	b = binary.BigEndian.AppendUint16(b, s.PeerPort)
	b = appendIP(b, s.Family, &s.LocalIP)
	b = appendIP(b, s.Family, &s.PeerIP)
	b = native.AppendUint32(b, s.Interface)
	b = native.AppendUint32(b, uint32(s.Cookie))
	b = native.AppendUint32(b, uint32(s.Cookie>>32))
	return finish(b, at)
}

func appendIP(b []byte, f conn.Family, ip *[16]byte) []byte {
	if f == conn.IPv6 {
		return append(b, ip[:]...)
	}
	b = append(b, ip[12:]...)
	return append(b, make([]byte, 12)...)
}

// status is the error that NLMSG_ERROR or NLMSG_DONE carries; nil for 0.
func status(b []byte) error {
	if len(b) < 4 {
		return nil // NLMSG_DONE of old kernels is empty
	}
	if code := int32(native.Uint32(b)); code < 0 {
		return syscall.Errno(-code)
	}
	return nil
}
