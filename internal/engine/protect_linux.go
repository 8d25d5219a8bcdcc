package engine

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// guard knows which connections are never touched.
type guard struct {
	run       *run
	ancestors map[int32]bool
	sessions  map[[2]netip.AddrPort]bool // local, peer of SSH sessions we run in
}

// newGuard finds the session we run in. sudo may have taken SSH_CONNECTION
// out of our environment, and tmux may have taken sshd out of our ancestry,
// so both are looked at, in us and in every ancestor.
func (r *run) newGuard() *guard {
	g := &guard{run: r, ancestors: map[int32]bool{}, sessions: map[[2]netip.AddrPort]bool{}}
	self := int32(os.Getpid())
	pids, _ := r.proc.Ancestors(self) // as far as they can be followed
	for _, pid := range append(pids, self) {
		if pid != self && pid != 1 {
			g.ancestors[pid] = true
		}
		if v, ok, err := r.proc.Environ(pid, "SSH_CONNECTION"); err == nil && ok {
			if session, ok := parseSSHConnection(v); ok {
				g.sessions[session] = true
			}
		}
	}
	return g
}

// parseSSHConnection reads "client-ip client-port server-ip server-port"
// (ssh(1), ENVIRONMENT) as local, peer.
func parseSSHConnection(v string) (session [2]netip.AddrPort, ok bool) {
	f := strings.Fields(v)
	if len(f) != 4 {
		return session, false
	}
	for at, part := range [2]int{2, 0} {
		ip, err := netip.ParseAddr(f[part])
		if err != nil {
			return session, false
		}
		port, err := strconv.ParseUint(f[part+1], 10, 16)
		if err != nil {
			return session, false
		}
		session[at] = netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(port))
	}
	return session, true
}

// of says why the connection is protected, as far as its owners and addresses
// tell. Whether both ends are on this host the route tells.
func (g *guard) of(row *row) protection {
	for _, o := range g.run.snap.ownersOf(row) {
		if g.ancestors[o.PID] {
			return ownSession
		}
		if p := g.run.snap.Process(o.PID); p != nil && p.Comm == "kubelet" {
			return ofKubelet
		}
	}
	if len(g.sessions) > 0 && g.sessions[[2]netip.AddrPort{unmap(row.sock.Local()), unmap(row.sock.Peer())}] {
		return ownSession
	}
	return unprotected
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
