package conn

import (
	"net/netip"
	"path"
	"time"
)

type op uint8

const (
	opEQ op = iota
	opNE
	opLT
	opLE
	opGT
	opGE
)

var opText = [...]string{"=", "!=", "<", "<=", ">", ">="}

func (o op) holds(a, b uint64) bool {
	switch o {
	case opEQ:
		return a == b
	case opNE:
		return a != b
	case opLT:
		return a < b
	case opLE:
		return a <= b
	case opGT:
		return a > b
	default:
		return a >= b
	}
}

type field uint8

const (
	fieldSport field = iota
	fieldDport
	fieldDev
	fieldCgroup
	fieldVerdict
	fieldTimer
	fieldFamily
	fieldHeard
	fieldSent
	fieldRTT
	fieldPID
	fieldUID
	fieldInode
	fieldCookie
	fieldNetNS
	fieldMark
	fieldRecvQ
	fieldSendQ
	fieldComm
	fieldUnit
	fieldContainer
)

type valueKind uint8

const (
	valueNumber valueKind = iota
	valuePort
	valueDev
	valueCgroup
	valueDuration
	valueName
	valueGlob
)

var fields = [...]struct {
	name string
	kind valueKind
	bits int // of a number
}{
	fieldSport:     {"sport", valuePort, 16},
	fieldDport:     {"dport", valuePort, 16},
	fieldDev:       {"dev", valueDev, 32},
	fieldCgroup:    {"cgroup", valueCgroup, 64},
	fieldVerdict:   {"verdict", valueName, 0},
	fieldTimer:     {"timer", valueName, 0},
	fieldFamily:    {"family", valueName, 0},
	fieldHeard:     {"heard", valueDuration, 0},
	fieldSent:      {"sent", valueDuration, 0},
	fieldRTT:       {"rtt", valueDuration, 0},
	fieldPID:       {"pid", valueNumber, 31},
	fieldUID:       {"uid", valueNumber, 32},
	fieldInode:     {"inode", valueNumber, 32},
	fieldCookie:    {"cookie", valueNumber, 64},
	fieldNetNS:     {"netns", valueNumber, 32},
	fieldMark:      {"mark", valueNumber, 32},
	fieldRecvQ:     {"recv-q", valueNumber, 32},
	fieldSendQ:     {"send-q", valueNumber, 32},
	fieldComm:      {"comm", valueGlob, 0},
	fieldUnit:      {"unit", valueGlob, 0},
	fieldContainer: {"container", valueGlob, 0},
}

// ordered reports whether < and > make sense.
func (f field) ordered() bool {
	switch fields[f].kind {
	case valueNumber, valuePort, valueDuration:
		return true
	}
	return false
}

// statePred holds in the states of the set.
type statePred States

func (p statePred) match(s *Subject) Truth { return truth(States(p).Has(s.Sock.State)) }

// hostPred compares an address and a port as INET_DIAG_BC_S_COND and D_COND
// do (inet_diag_bc_run): an IPv4 prefix fits IPv4-mapped addresses of IPv6
// sockets too, an IPv6 prefix never an IPv4 socket.
type hostPred struct {
	peer   bool
	prefix netip.Prefix // the zero Prefix: any address
	port   int32        // -1: any port
}

func (p hostPred) match(s *Subject) Truth {
	ip, port := s.Sock.LocalIP, s.Sock.LocalPort
	if p.peer {
		ip, port = s.Sock.PeerIP, s.Sock.PeerPort
	}
	if p.port >= 0 && p.port != int32(port) {
		return No
	}
	if !p.prefix.IsValid() {
		return Yes
	}
	addr := netip.AddrFrom16(ip)
	if p.prefix.Addr().Is4() {
		return truth(p.prefix.Contains(addr.Unmap()))
	}
	return truth(s.Sock.Family == IPv6 && p.prefix.Contains(addr))
}

// markPred compares the masked mark as INET_DIAG_BC_MARK_COND does.
type markPred struct{ value, mask uint32 }

func (p markPred) match(s *Subject) Truth { return truth(s.Sock.Mark&p.mask == p.value) }

// autoboundPred stands for INET_DIAG_BC_AUTO. The kernel tests a flag of the
// socket that it shows nobody, so this compares ports, and is not pushed
// down: the two would differ for a program that binds inside the range.
type autoboundPred struct{ low, high uint16 }

func (p autoboundPred) match(s *Subject) Truth {
	return truth(p.low <= s.Sock.LocalPort && s.Sock.LocalPort <= p.high)
}

// blindPred holds where the forecast is never.
type blindPred struct{}

func (blindPred) match(s *Subject) Truth {
	if !s.Foreseen {
		return Maybe
	}
	return truth(s.Blind)
}

// numPred compares a number, a duration in nanoseconds, or a name by its
// number. The operator is never opNE: that is a notNode.
type numPred struct {
	field field
	op    op
	value uint64
	name  string // a cgroup's path, where that was given: its number tells nobody anything
}

func (p numPred) match(s *Subject) Truth {
	k := s.Sock
	var v uint64
	known := true
	switch p.field {
	case fieldPID:
		for _, o := range s.Owners {
			if p.op.holds(uint64(uint32(o.PID)), p.value) {
				return Yes
			}
		}
		if s.OwnersKnown {
			return No
		}
		return Maybe
	case fieldSport:
		v = uint64(k.LocalPort)
	case fieldDport:
		v = uint64(k.PeerPort)
	case fieldDev:
		v = uint64(k.Interface)
	case fieldCgroup:
		// Minisockets belong to no cgroup, and the kernel compares them as 0.
		v, known = k.CgroupID, k.CgroupID != 0 || bucket.Has(k.State)
	case fieldVerdict:
		v, known = uint64(s.Verdict), s.Judged
	case fieldTimer:
		v = uint64(k.Timer)
	case fieldFamily:
		v = uint64(k.Family)
	case fieldHeard:
		var d time.Duration
		d, known = k.Heard()
		v = uint64(d)
	case fieldSent:
		v, known = uint64(k.LastDataSent)*uint64(time.Millisecond), k.HasInfo
	case fieldRTT:
		v, known = uint64(k.RTTUS)*uint64(time.Microsecond), k.HasInfo && k.RTTUS != 0
	case fieldUID:
		v = uint64(k.UID)
	case fieldInode:
		v = uint64(k.Inode)
	case fieldCookie:
		v = k.Cookie
	case fieldNetNS:
		v = uint64(k.NetNS)
	case fieldMark:
		v = uint64(k.Mark)
	case fieldRecvQ:
		v = uint64(k.RecvQueue)
	case fieldSendQ:
		v = uint64(k.SendQueue)
	}
	if !known {
		return Maybe
	}
	return truth(p.op.holds(v, p.value))
}

// globPred compares what is known of the owning processes with a pattern
// that path.Match has accepted.
type globPred struct {
	field   field
	pattern string
}

func (p globPred) match(s *Subject) Truth {
	unsure := !s.OwnersKnown
	for _, o := range s.Owners {
		var proc *Process
		if s.Process != nil {
			proc = s.Process(o.PID)
		}
		if proc == nil {
			unsure = true
			continue
		}
		text := proc.Comm
		switch p.field {
		case fieldUnit:
			text = proc.Unit
		case fieldContainer:
			text = proc.Container
		}
		if ok, _ := path.Match(p.pattern, text); ok {
			return Yes
		}
	}
	if unsure {
		return Maybe
	}
	return No
}
