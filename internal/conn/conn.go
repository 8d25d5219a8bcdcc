// Package conn is the shared vocabulary of deadpeer: what identifies a TCP
// connection, what the kernel said about it, and the filter language that
// selects some of them. It does no I/O and runs on every OS.
package conn

import (
	"fmt"
	"net/netip"
	"time"
)

// ID names one connection of this host: the inode of its network namespace
// and its socket cookie (sock_diag(7), SO_COOKIE in socket(7)). Nothing else
// does: 4-tuples, descriptors and inodes are reused. The zero ID names none.
type ID struct {
	NetNS  uint32 // inode of the network namespace (stat of /proc/PID/ns/net)
	Cookie uint64 // never 0 and never reused while the host runs
}

// String gives "netns/cookie", for messages.
func (id ID) String() string { return fmt.Sprintf("%d/%d", id.NetNS, id.Cookie) }

// Sock is one TCP socket as the kernel described it at one instant. It holds
// no pointers, so that a table of a hundred thousand of them costs the garbage
// collector nothing. Fields after HasInfo come from struct tcp_info and mean
// nothing when HasInfo is false (TIME-WAIT and SYN-RECEIVED sockets have none).
type Sock struct {
	Cookie       uint64   // socket cookie
	CgroupID     uint64   // cgroup v2 id of the socket (INET_DIAG_CGROUP_ID), 0 when not told
	LocalIP      [16]byte // IPv4 addresses are stored IPv4-mapped
	PeerIP       [16]byte
	LocalPort    uint16
	PeerPort     uint16
	Family       Family // the socket's own family: an IPv6 socket may carry IPv4-mapped addresses
	State        State
	Timer        Timer
	Retransmits  uint8  // idiag_retrans: of the timer that Timer names
	NetNS        uint32 // inode of the network namespace
	Inode        uint32 // of the socket; 0 when no descriptor was ever made (accept queue, orphan, TIME-WAIT)
	UID          uint32 // owner of the socket as the kernel records it
	Interface    uint32 // index of the interface the socket is bound to, 0 for none
	Mark         uint32 // SO_MARK; told only with CAP_NET_ADMIN
	RecvQueue    uint32 // bytes not yet read by the program; of a listener: connections waiting for accept
	SendQueue    uint32 // bytes not yet acknowledged by the peer; of a listener: the backlog
	TimerMS      uint32 // until the timer fires, milliseconds
	RTOUS        uint32 // tcpi_rto, microseconds, the backed-off value
	RTTUS        uint32 // smoothed round-trip time, microseconds, 0 when never measured
	RTTVarUS     uint32 // its mean deviation, microseconds
	LastDataSent uint32 // milliseconds ago
	LastDataRecv uint32 // milliseconds ago
	LastAckRecv  uint32 // milliseconds ago
	SegsIn       uint32 // segments received since the connection began; wraps
	SegsOut      uint32 // segments sent since the connection began; wraps
	Unacked      uint32 // segments in flight
	SendWindow   uint32 // the peer's window, bytes; meaningful when HasWindow
	Probes       uint8  // unanswered window or keepalive probes, by the kernel's own count
	Backoff      uint8  // exponential backoff of the retransmission timer
	HasInfo      bool   // tcp_info was there, long enough for SegsIn (Linux 4.2 and later)
	HasWindow    bool   // SendWindow was there (Linux 5.4 and later)
	MPTCP        bool   // a subflow of an MPTCP connection; told only with CAP_NET_ADMIN
}

// ID is the identity of s.
func (s *Sock) ID() ID { return ID{NetNS: s.NetNS, Cookie: s.Cookie} }

// Local is the local address and port.
func (s *Sock) Local() netip.AddrPort { return addrPort(s.Family, s.LocalIP, s.LocalPort) }

// Peer is the peer's address and port.
func (s *Sock) Peer() netip.AddrPort { return addrPort(s.Family, s.PeerIP, s.PeerPort) }

func addrPort(f Family, ip [16]byte, port uint16) netip.AddrPort {
	a := netip.AddrFrom16(ip)
	if f == IPv4 {
		a = a.Unmap()
	}
	return netip.AddrPortFrom(a, port)
}

// Heard is the time since anything at all arrived from the peer: an upper
// bound, since a peer's own keepalive probes move only SegsIn. ok is false
// when the kernel did not tell, or nothing can have come yet.
func (s *Sock) Heard() (d time.Duration, ok bool) {
	if !s.HasInfo || s.State == SynSent || s.State == Listen {
		return 0, false
	}
	return time.Duration(min(s.LastDataRecv, s.LastAckRecv)) * time.Millisecond, true
}

// Idle reports whether nothing of ours waits for the peer: no segment in
// flight and an empty send queue.
func (s *Sock) Idle() bool { return s.Unacked == 0 && s.SendQueue == 0 }

// BaseRTO is the retransmission timeout without backoff: the greater of
// 200 ms and rtt + 4·rttvar (RFC 6298 section 2, tcp_rto_min of Linux).
// A socket without a measured round trip gets 1 s (RFC 6298 section 2.1).
func (s *Sock) BaseRTO() time.Duration {
	if s.RTTUS == 0 {
		return time.Second
	}
	rto := time.Duration(s.RTTUS)*time.Microsecond + 4*time.Duration(s.RTTVarUS)*time.Microsecond
	return max(200*time.Millisecond, rto)
}

// Waiting is how long, at least, what we sent has been waiting for the peer:
// since data was last sent, and if that was a retransmission, for the timeouts
// before it as well.
func (s *Sock) Waiting() time.Duration {
	d := time.Duration(s.LastDataSent) * time.Millisecond
	if s.Timer != TimerRetransmit {
		return d
	}
	const most = 2 * time.Minute // TCP_RTO_MAX: having grown to it, it no longer tells from what
	rto := time.Duration(s.RTOUS) * time.Microsecond
	if rto < most {
		return d + rto - rto>>min(s.Backoff, 63)
	}
	for n := range s.Backoff {
		d += min(min(s.BaseRTO(), most)<<min(n, 20), most)
	}
	return d
}

// Family is the address family of a socket.
type Family uint8

// The families of TCP sockets.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String gives "ipv4" or "ipv6".
func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// State is a TCP state, numbered as Linux does (include/net/tcp_states.h).
type State uint8

// The states of RFC 9293 section 3.3.2, with Linux's additions.
const (
	Established State = iota + 1
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	NewSynReceived
	BoundInactive
	stateEnd
)

var stateNames = [stateEnd]string{
	Established: "ESTABLISHED", SynSent: "SYN-SENT", SynReceived: "SYN-RECEIVED",
	FinWait1: "FIN-WAIT-1", FinWait2: "FIN-WAIT-2", TimeWait: "TIME-WAIT",
	Close: "CLOSED", CloseWait: "CLOSE-WAIT", LastAck: "LAST-ACK",
	Listen: "LISTEN", Closing: "CLOSING", NewSynReceived: "SYN-RECEIVED",
	BoundInactive: "BOUND",
}

// String gives the state's name in RFC 9293's spelling.
func (s State) String() string {
	if s == 0 || s >= stateEnd {
		return fmt.Sprintf("STATE-%d", uint8(s))
	}
	return stateNames[s]
}

// States is a set of states, bit 1<<State each, as inet_diag wants it.
type States uint32

// Sets of states.
const (
	AllStates States = 1<<stateEnd - 2
	// Connections are the states that have a peer: all but LISTEN, CLOSED and BOUND.
	Connections = AllStates &^ (1<<Listen | 1<<Close | 1<<BoundInactive)
)

// Has reports whether s is in the set.
func (set States) Has(s State) bool { return set&(1<<s) != 0 }

// Timer is the timer a socket has pending (idiag_timer).
type Timer uint8

// The timers sock_diag tells of. A retransmission or persist timer hides an
// armed keepalive timer.
const (
	TimerNone Timer = iota
	TimerRetransmit
	TimerKeepalive
	TimerTimeWait
	TimerPersist
)

// String gives the timer's name as the JSON contract spells it.
func (t Timer) String() string {
	switch t {
	case TimerNone:
		return "none"
	case TimerRetransmit:
		return "retransmit"
	case TimerKeepalive:
		return "keepalive"
	case TimerTimeWait:
		return "time-wait"
	case TimerPersist:
		return "persist"
	default:
		return fmt.Sprintf("timer-%d", uint8(t))
	}
}

// Verdict is what deadpeer holds of a connection.
type Verdict uint8

// The verdicts; package verdict has the rules.
const (
	Unknown     Verdict = iota // could not be asked
	Alive                      // a question was answered, or (scan) heard a moment ago
	Quiet                      // scan only: idle, and nobody asked
	Suspect                    // questions unanswered, but not all conditions of dead hold
	Dead                       // unreachable from here
	Stuck                      // answers, but what we send does not move
	Leaked                     // CLOSE-WAIT that the program does not close: a local bug
	ClosingDown                // on its way out by itself ("closing")
	verdictEnd
)

var verdictNames = [verdictEnd]string{"unknown", "alive", "quiet", "suspect", "dead", "stuck", "leaked", "closing"}

// VerdictCount is how many there are.
const VerdictCount = int(verdictEnd)

// Verdicts lists every verdict in the order they are shown.
func Verdicts() []Verdict {
	return []Verdict{Alive, Quiet, Suspect, Dead, Stuck, Leaked, ClosingDown, Unknown}
}

// String gives the verdict's name as the JSON contract spells it.
func (v Verdict) String() string {
	if v >= verdictEnd {
		return fmt.Sprintf("verdict-%d", uint8(v))
	}
	return verdictNames[v]
}

// Owner is one descriptor of one process that holds a socket.
type Owner struct {
	PID int32
	FD  int32
}

// Process is what is known of a process that owns connections. The strings
// come from the process itself and are hostile until escaped (Printable).
type Process struct {
	PID       int32
	PPID      int32
	Comm      string // its name, at most 15 bytes, chosen by the process
	Cgroup    string // cgroup v2 path, or the systemd path of a v1 host
	Unit      string // systemd unit, "" when it runs in none
	Container string // container id, "" when it runs in none
}
