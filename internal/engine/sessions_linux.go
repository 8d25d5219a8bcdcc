package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/procfd"
	"deadpeer/internal/session"
	"deadpeer/internal/sockdiag"
)

// looks is the databases of a run, looked into while the rest goes on.
type looks struct {
	list  []*look
	began time.Time
	wait  sync.WaitGroup
	stop  context.CancelFunc
}

// staleAfter is the age from which a view is read again before it is shown.
const staleAfter = time.Second

// lookInto begins to look into the databases of the request, from the network
// namespace that it names, or from our own.
func (r *run) lookInto(ctx context.Context) error {
	options := session.Options{}
	if named := r.req.Netns; named != "" && named != "current" && named != "all" {
		for _, space := range r.spaces { // it is the only one
			options.Within = space.ns.Do
		}
	}
	for _, source := range r.req.Databases {
		db, err := session.Open(source, options)
		if err != nil {
			return err
		}
		r.looks.list = append(r.looks.list, &look{db: db})
	}
	ctx, r.looks.stop = context.WithCancel(ctx)
	r.looks.read(ctx)
	return nil
}

func (l *looks) read(ctx context.Context) {
	l.began = time.Now()
	for _, one := range l.list {
		l.wait.Go(func() {
			start := time.Now()
			view, err := one.db.Look(ctx)
			if err == nil || one.view == nil { // an older view is better than none
				one.view, one.err = view, err
			}
			one.took = time.Since(start)
		})
	}
}

func (l *looks) close() {
	if l.stop != nil {
		l.stop()
	}
	l.wait.Wait()
	for _, one := range l.list { // one that hangs does not keep the others
		l.wait.Go(func() { _ = one.db.Close() }) // everything was said
	}
	l.wait.Wait()
}

// tie joins the sessions with the connections, by the peer's address and port.
// A database that does not answer costs its own sessions only.
func (r *run) tie(ctx context.Context) error {
	r.looks.wait.Wait()
	if len(r.looks.list) == 0 {
		return nil
	}
	if time.Since(r.looks.began) > staleAfter {
		answering := r.looks.list[:0:0]
		for _, l := range r.looks.list {
			if l.err == nil {
				answering = append(answering, l)
			}
		}
		again := looks{list: answering}
		again.read(ctx)
		again.wait.Wait()
	}
	type identity struct {
		engine session.Engine
		key    string
	}
	seen := map[identity]bool{}          // two URLs of one server show the same sessions
	wanted := map[netip.AddrPort][]int{} // ties by the peer that the database tells
	for _, l := range r.looks.list {
		if l.err != nil {
			r.snap.Notes = append(r.snap.Notes, Note{Text: l.err.Error(), Privilege: errors.Is(l.err, session.ErrPrivilege), Database: true})
			continue
		}
		r.snap.Told++
		r.snap.How = append(r.snap.How, fmt.Sprintf("looked into %s (%s): %s in %s",
			l.db.Source(), l.view.Server, count(len(l.view.Sessions), "session"), l.took.Round(time.Millisecond/10)))
		for _, n := range l.view.Notes {
			r.snap.Notes = append(r.snap.Notes, Note{Text: n.Text, Privilege: n.Privilege, Database: n.Privilege})
		}
		if err := r.findHome(ctx, l); err != nil {
			return err
		}
		for i := range l.view.Sessions {
			s := &l.view.Sessions[i]
			id := identity{s.Engine, s.Key()}
			if seen[id] {
				continue
			}
			seen[id] = s.Engine != session.ZEO // whose storages have common names
			if s.Peer.Port() != 0 {
				wanted[s.Peer] = append(wanted[s.Peer], len(r.snap.ties))
			}
			r.snap.ties = append(r.snap.ties, Tie{Source: l.db.Source(), Session: s, look: l})
		}
	}
	r.hideOwn()
	clients, err := r.clientEnds(ctx, wanted)
	if err != nil {
		return err
	}
	r.join(wanted, clients)
	return nil
}

// clientEnds finds who on this host has the other ends of sessions: clients,
// or poolers that speak for some. The filter, which says whose connections are
// wanted, does not matter to it.
func (r *run) clientEnds(ctx context.Context, wanted map[netip.AddrPort][]int) (map[netip.AddrPort]string, error) {
	clients := map[netip.AddrPort]string{}
	if len(wanted) == 0 {
		return clients, nil
	}
	names := map[uint32]netip.AddrPort{} // by inode
	for _, space := range r.spaces {
		q := sockdiag.Query{States: conn.Connections, NoInfo: true}
		err := space.diag.Dump(ctx, q, func(s *conn.Sock, _ *sockdiag.Memory) error {
			if local := unmap(s.Local()); len(wanted[local]) > 0 {
				clients[local], names[s.Inode] = r.snap.describe(nil), local
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(names) == 0 || r.req.NoOwners {
		return clients, nil
	}
	_, err := r.proc.Sockets(ctx, procfd.SocketsOptions{Workers: 1}, func(_ int, inode uint32, o conn.Owner) {
		if at, ok := names[inode]; ok && inode != 0 {
			r.process(o.PID)
			clients[at] = r.snap.describe([]conn.Owner{o})
		}
	})
	return clients, err
}

// findHome finds where a database's server is. The peer of our own session,
// as the server tells it, is the peer of a connection in the server's network
// namespace; where there is none, the server is elsewhere, and a connection
// of ours that looks like one of its sessions' is another one.
func (r *run) findHome(ctx context.Context, l *look) error {
	l.home = map[uint32]bool{}
	self := l.view.Self
	switch {
	case self == nil:
		return nil
	case self.Peer.Port() == 0: // through a local socket
		for n := range r.spaces {
			l.home[n] = true
		}
		return nil
	}
	ports, err := conn.ParseFilter(strings.Fields(fmt.Sprintf("sport = :%d and dport = :%d", l.view.Port, self.Peer.Port())), conn.Resolver{})
	if err != nil {
		return err
	}
	for n, space := range r.spaces {
		q := sockdiag.Query{States: 1 << conn.Established, Filter: ports.Kernel(conn.KernelSupport{}), NoInfo: true}
		err := space.diag.Dump(ctx, q, func(s *conn.Sock, _ *sockdiag.Memory) error {
			if l.fits(s, self) {
				l.home[n] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(l.home) == 0 {
		r.note(false, "%s is not served from here, or from another network namespace (--netns): its sessions are shown, and tied to no connection", l.db.Source())
	}
	return nil
}

// fits reports whether a socket is the server's end of a session's connection.
func (l *look) fits(s *conn.Sock, of *session.Session) bool {
	return s.LocalPort == l.view.Port && s.PeerPort == of.Peer.Port() &&
		(!of.Peer.Addr().IsValid() || unmap(s.Peer()).Addr() == of.Peer.Addr())
}

// hideOwn leaves out the connections by which we look into the databases, at
// either end.
func (r *run) hideOwn() {
	for _, l := range r.looks.list {
		if l.err != nil || l.view.Self == nil || !l.view.Self.Peer.Addr().IsValid() {
			continue
		}
		self := l.view.Self
		for i := range r.snap.table.n {
			row := r.snap.table.at(i)
			ours := func(o conn.Owner) bool { return int(o.PID) == os.Getpid() }
			row.skip = row.skip || l.home[row.sock.NetNS] && l.fits(&row.sock, self) ||
				unmap(row.sock.Local()) == self.Peer && slices.ContainsFunc(r.snap.ownersOf(row), ours)
		}
	}
}

// join finds the connection of every session, and says why there is none.
func (r *run) join(wanted map[netip.AddrPort][]int, clients map[netip.AddrPort]string) {
	snap := r.snap
	snap.tieAt = map[uint32]int{}
	servers := map[int][]uint32{} // by tie
	for i := range snap.table.n {
		sock := &snap.table.at(i).sock
		peer := unmap(sock.Peer())
		for _, key := range [2]netip.AddrPort{peer, netip.AddrPortFrom(netip.Addr{}, peer.Port())} {
			for _, at := range wanted[key] {
				if t := &snap.ties[at]; t.look.home[sock.NetNS] && t.look.fits(sock, t.Session) {
					servers[at] = append(servers[at], i)
				}
			}
		}
	}
	for at := range snap.ties {
		t := &snap.ties[at]
		t.Client = clients[t.Session.Peer]
		switch rows := servers[at]; {
		case t.Session.Peer.Port() == 0 && t.Session.Engine == session.ZEO:
			t.Leg = "the server tells of no peer"
		case t.Session.Peer.Port() == 0:
			t.Leg = "a local socket: no TCP connection"
		case len(rows) > 1:
			t.Leg = "several connections have that peer"
		case len(rows) == 1:
			t.row, t.tied = rows[0], true
			if t.Client != "" {
				t.Leg = fmt.Sprintf("its client is %s on this host, which may speak for others", t.Client)
			}
			if first, taken := snap.tieAt[t.row]; taken {
				t.shared, snap.ties[first].shared = true, true
				t.Leg = "several sessions have that peer"
			} else {
				snap.tieAt[t.row] = at
			}
		case t.Client != "":
			t.Leg = fmt.Sprintf("only the client's end is here: %s", t.Client)
		case len(t.look.home) == 0:
			t.Leg = "the server's end is not here"
		default:
			t.Leg = "no connection here has that peer: another network namespace, or a NAT or proxy between"
		}
	}
}

// FindSession gives the connection of the session with that ID. It is an error
// when there is none, and when several databases have one.
func (e *Engine) FindSession(ctx context.Context, req Request, id string) (conn.ID, error) {
	req.NoOwners = true
	r, err := e.see(ctx, req)
	if err != nil {
		return conn.ID{}, err
	}
	defer r.close()
	if err := r.tie(ctx); err != nil {
		return conn.ID{}, err
	}
	var found []*Tie
	for i := range r.snap.ties {
		if t := &r.snap.ties[i]; t.Session.ID == id {
			found = append(found, t)
		}
	}
	why := ""
	switch {
	case len(found) == 0:
		if at := slices.IndexFunc(r.snap.Notes, func(n Note) bool { return n.Database }); at >= 0 {
			why = ": " + r.snap.Notes[at].Text
		}
	case len(found) > 1:
		why = ": several databases have one, name one --db"
	case !found[0].tied || found[0].shared:
		why = ": " + found[0].Leg
	default:
		return r.snap.table.at(found[0].row).sock.ID(), nil
	}
	return conn.ID{}, fmt.Errorf("find session %s: no such session on a connection of this host%s", conn.Printable(id), why)
}
