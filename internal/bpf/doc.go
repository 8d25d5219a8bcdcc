// Package bpf looks into and changes TCP sockets from inside the kernel, by
// programs of its own (folder c, Dual BSD/GPL):
//
//   - [Sockets] lists the connections of a network namespace with their
//     settings, quicker than sock_diag does, and all descriptors that are
//     sockets, which tell whose they are. Pinned on a bpffs they cost nothing
//     to start.
//   - [Changer] reads and changes the settings of chosen sockets of a network
//     namespace, with or without a descriptor.
//   - [Ender] ends chosen sockets, but those that have heard anything since
//     they were seen.
//   - [AttachHook] puts a policy on every new connection of a cgroup before
//     connect() or accept() returns it, for as long as the hook is there, and
//     on request keeps programs from weakening it, or notes what they set
//     themselves.
//
// Linux 5.15 with BTF of its own (CONFIG_DEBUG_INFO_BTF), [Ender] 6.5. All need CAP_BPF and
// CAP_PERFMON, entering a network namespace CAP_SYS_ADMIN, hooks CAP_NET_ADMIN
// as well (capabilities(7)). What is missing is an error that says so; where
// the kernel or the system is what lacks it, it matches errors.ErrUnsupported.
// [Features] tries all of it.
//
//	s, err := bpf.OpenSockets(bpf.SocketsOptions{})
//	if err != nil {
//		return err
//	}
//	defer s.Close()
//	err = s.Connections(ctx, ns, nil, func(r *bpf.Record) error {
//		fmt.Println(r.Sock.Local(), r.Sock.Peer(), r.Settings.KeepAlive)
//		return nil
//	})
package bpf

import (
	"errors"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// Settings are what the kernel holds for one socket, and where it comes from.
type Settings struct {
	keepalive.Settings                  // in force
	Own                keepalive.Policy // of the socket; zero where the host's value holds
}

// Record is one TCP socket that has a peer.
type Record struct {
	// Sock is what sock_diag tells of it, with Mark and MPTCP.
	Sock     conn.Sock
	Settings Settings // meaningless unless Sock.HasInfo
	Handle   Handle   // zero when no descriptor was ever made
	Reuses   bool     // carries SO_REUSEADDR
	Tick     uint32   // the low half of the kernel's tick counter when all this was so
}

// Handle names a struct socket of the kernel for as long as it lives. The
// subflows of MPTCP bear that of their MPTCP socket. The zero Handle names none.
type Handle struct {
	Inode uint32 // numbers wrap
	Place uint32 // where it lies
}

// Descriptor is one descriptor of one process that is a socket.
type Descriptor struct {
	Handle Handle
	Owner  conn.Owner
}

// SocketsOptions say where the programs are kept between runs.
type SocketsOptions struct {
	// Dir is a folder on a bpffs; "" is the folder deadpeer on the bpffs of
	// this mount namespace. It is made, for its owner alone.
	Dir   string
	NoPin bool // load the programs for this run alone
	// Alone says that the process has nothing to do that cannot wait while lists
	// are read. The Go runtime is not told of the reading then, which takes a
	// third less time in all. But where a program keeps a socket locked, as one
	// does that sends from memory whose page does not come, the kernel waits for
	// that socket, and all of the process with it.
	Alone bool
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

// Silent is a socket as it was seen.
type Silent struct {
	Cookie uint64
	SegsIn uint32        // tcpi_segs_in
	For    time.Duration // for which it must have received no data and no acknowledgment
}

// Ending is what came of a socket that was to be ended.
type Ending uint16

// The endings.
const (
	NotFound Ending = iota // it is gone, or no full socket
	Ended
	Heard   // left alone: it has received something since, or is being connected anew
	Refused // by the kernel (tcp_abort)
)
