// Package bpf looks into and changes TCP sockets from inside the kernel, by
// three programs of its own (folder c, Dual BSD/GPL):
//
//   - [Sockets] lists every descriptor that is a TCP socket, of every process
//     and network namespace, with the socket's settings, in one pass. Pinned on
//     a bpffs it costs nothing to start.
//   - [Changer] reads and changes the settings of chosen sockets of a network
//     namespace, with or without a descriptor.
//   - [AttachHook] puts a policy on every new connection of a cgroup before
//     connect() or accept() returns it, for as long as the hook is there, and
//     on request keeps programs from weakening it.
//
// Linux with BTF of its own (CONFIG_DEBUG_INFO_BTF): 5.12 for Sockets, 5.15 for
// Changer and hooks. All need CAP_BPF and CAP_PERFMON, entering a network
// namespace CAP_SYS_ADMIN, hooks CAP_NET_ADMIN as well (capabilities(7)). What
// is missing is an error that says so; where the kernel or the system is what
// lacks it, it matches errors.ErrUnsupported. [Features] tries all of it.
//
//	s, err := bpf.OpenSockets(bpf.SocketsOptions{})
//	if err != nil {
//		return err
//	}
//	defer s.Close()
//	err = s.Each(ctx, func(r *bpf.Record) error {
//		fmt.Println(r.Owner.PID, r.Local(), r.Peer(), r.Settings.KeepAlive)
//		return nil
//	})
package bpf

import (
	"errors"
	"net/netip"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// Settings are what the kernel holds for one socket, and where it comes from.
type Settings struct {
	keepalive.Settings                  // in force
	Own                keepalive.Policy // of the socket; zero where the host's value holds
}

// Record is one descriptor of one process that is a TCP socket.
type Record struct {
	ID        conn.ID // Cookie 0 when MPTCP
	Owner     conn.Owner
	Comm      string   // the process's name, chosen by it: show it through conn.Printable
	Inode     uint32   // of the socket
	UID       uint32   // owner of the socket as the kernel records it
	LocalIP   [16]byte // IPv4 addresses are stored IPv4-mapped
	PeerIP    [16]byte
	LocalPort uint16
	PeerPort  uint16
	Family    conn.Family
	State     conn.State
	Heard     time.Duration // since data or an acknowledgement came, exact to a tick; means nothing before the handshake
	Settings  Settings
	// MPTCP: the descriptor is an MPTCP socket. Its TCP sockets have no
	// descriptor and bear its inode; ID.Cookie, UID, addresses, State, Heard
	// and Settings are not told.
	MPTCP bool
}

// Local is the local address and port.
func (r *Record) Local() netip.AddrPort { return addrPort(r.Family, r.LocalIP, r.LocalPort) }

// Peer is the peer's address and port.
func (r *Record) Peer() netip.AddrPort { return addrPort(r.Family, r.PeerIP, r.PeerPort) }

func addrPort(f conn.Family, ip [16]byte, port uint16) netip.AddrPort {
	a := netip.AddrFrom16(ip)
	if f == conn.IPv4 {
		a = a.Unmap()
	}
	return netip.AddrPortFrom(a, port)
}

// SocketsOptions say where the program is kept between runs.
type SocketsOptions struct {
	// Dir is a folder on a bpffs; "" is the folder deadpeer on the bpffs of
	// this mount namespace. It is made, for its owner alone.
	Dir   string
	NoPin bool // load the program for this run alone
}

// Op is what [Changer.Apply] does with a socket.
type Op uint8

// The ops.
const (
	Look    Op = iota // read its settings
	Set               // what keepalive.Set does, and switch keepalive off if the settings say so
	Restore           // what keepalive.Restore does, and read them again
)

// Change is what is wanted of one socket. As with package keepalive, zero
// leaves idle, interval and probes as they are, and a negative user timeout
// leaves that. Restore leaves all that is negative.
type Change struct {
	Op       Op
	Settings keepalive.Settings
	// Conditional leaves a socket alone, with ErrDiffers, unless what is in
	// force for it is Was.
	Conditional bool
	Was         keepalive.Settings
}

// Target is a socket and what is wanted of it.
type Target struct {
	Cookie uint64
	Change Change
}

// ErrDiffers says that a socket was not changed: its settings are not those
// that it was to have.
var ErrDiffers = errors.New("its settings have changed meanwhile")

// Result is what became of a Change.
type Result struct {
	Found  bool     // the socket was there
	Before Settings // right before the change, the socket being locked
	Err    error    // why it was not changed, or only in part
}

// Feature is one thing this package can do.
type Feature struct {
	Name   string
	OK     bool
	Detail string
	Mend   string // how to get it, when it is missing
}
