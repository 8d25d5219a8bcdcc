// Package procfd tells which process holds which socket, and what is known of
// that process, from procfs. It is the way that works on every kernel and
// without BPF; Linux only (the package is empty elsewhere).
//
// Descriptors of other users' processes need CAP_SYS_PTRACE (proc(5),
// PTRACE_MODE_READ_FSCREDS of ptrace(2)); what stays hidden for want of it is
// counted, not an error. A procfs mounted with hidepid hides whole processes,
// uncounted.
//
//	fs := procfd.New("/proc")
//	owners := make([]map[uint32]conn.Owner, 2) // one a worker: no locks
//	for i := range owners {
//		owners[i] = map[uint32]conn.Owner{}
//	}
//	stats, err := fs.Sockets(ctx, procfd.SocketsOptions{Workers: 2},
//		func(worker int, inode uint32, o conn.Owner) { owners[worker][inode] = o })
package procfd
