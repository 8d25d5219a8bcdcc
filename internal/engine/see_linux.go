package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/netns"
	"deadpeer/internal/path"
	"deadpeer/internal/probe"
	"deadpeer/internal/procfd"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/verdict"
	"deadpeer/keepalive"
)

// space is one network namespace of a run.
type space struct {
	ns    *netns.NS
	diag  *sockdiag.Conn
	paths *path.Paths // nil until something is asked
}

// run is one pass through the steps.
type run struct {
	e      *Engine
	req    Request
	proc   *procfd.FS
	spaces map[uint32]*space
	snap   *Snapshot
	cookie index
	hidden string // why some owners may not have been found
}

// Scan lists the selected connections: state, owners, settings, forecast, and
// what can be said of the peer without asking. It sends nothing and changes
// nothing. Needs nothing for the caller's own connections; root, or
// CAP_SYS_PTRACE and CAP_NET_ADMIN, to see other users' owners and settings.
func (e *Engine) Scan(ctx context.Context, req Request) (*Snapshot, error) {
	r, err := e.see(ctx, req)
	if err != nil {
		return nil, err
	}
	defer r.close()
	r.readSettings(ctx)
	r.finish()
	return r.snap, ctx.Err()
}

// see lists the connections and who owns them.
func (e *Engine) see(ctx context.Context, req Request) (_ *run, err error) {
	if req.Filter == nil {
		if req.Filter, err = conn.ParseFilter(nil, conn.Resolver{}); err != nil {
			return nil, err
		}
	}
	if req.Timeout <= 0 {
		req.Timeout = DefaultTimeout
	}
	req.Rules = req.Rules.WithDefaults()
	r := &run{
		e: e, req: req, proc: procfd.New(e.options.ProcRoot), spaces: map[uint32]*space{},
		snap: &Snapshot{
			TakenAt: time.Now(), Rules: req.Rules, processes: map[int32]*conn.Process{},
			outcomes: map[uint32]Outcome{}, hz: e.options.HZ,
		},
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if err := r.open(); err != nil {
		return nil, err
	}
	if err := r.dump(ctx); err != nil {
		return nil, err
	}
	if !req.NoOwners || req.Filter.NeedsOwners() {
		if err := r.findOwners(ctx); err != nil {
			return nil, err
		}
	}
	r.selectRows()
	return r, nil
}

// open opens sock_diag in every namespace the request names.
func (r *run) open() error {
	var list []*netns.NS
	var err error
	root := r.e.options.ProcRoot
	switch r.req.Netns {
	case "", "current":
		var n *netns.NS
		n, err = netns.Current()
		list = []*netns.NS{n}
	case "all":
		var hidden int
		list, hidden, err = netns.List(root, "/run/netns", "/run/docker/netns")
		if hidden > 0 {
			r.note(true, "%d processes may be in network namespaces that were not looked into (needs CAP_SYS_PTRACE)", hidden)
		}
	default:
		var n *netns.NS
		if pid, convErr := strconv.Atoi(r.req.Netns); convErr == nil {
			n, err = netns.FromPID(root, pid)
		} else {
			n, err = netns.FromPath(r.req.Netns)
		}
		list = []*netns.NS{n}
	}
	if err != nil {
		return err
	}
	for _, n := range list {
		s := &space{ns: n}
		if s.diag, err = sockdiag.Open(n); err != nil {
			if len(list) == 1 {
				return errors.Join(err, n.Close())
			}
			r.note(true, "network namespace %s was not looked into: %v", n.Name(), err)
			_ = n.Close()
			continue
		}
		r.spaces[n.Inode()] = s
	}
	return nil
}

func (r *run) close() {
	for _, s := range r.spaces {
		if s.paths != nil {
			_ = s.paths.Close()
		}
		_ = s.diag.Close()
		_ = s.ns.Close()
	}
}

func (r *run) note(privilege bool, format string, args ...any) {
	r.snap.Notes = append(r.snap.Notes, Note{Text: fmt.Sprintf(format, args...), Privilege: privilege})
}

// dump fills the table with what the kernel lists and the filter may match.
func (r *run) dump(ctx context.Context) error {
	t := &r.snap.table
	subject := conn.Subject{}
	for _, s := range r.spaces {
		first := t.n
		q := sockdiag.Query{
			States: r.req.Filter.States(), Filter: r.req.Filter.Kernel(conn.KernelSupport{}), Memory: r.req.Memory,
			Restart: func() {
				t.truncate(first)
				r.snap.memory = r.snap.memory[:min(first, uint32(len(r.snap.memory)))]
			},
		}
		err := s.diag.Dump(ctx, q, func(sock *conn.Sock, m *sockdiag.Memory) error {
			subject.Sock = sock
			if r.req.Filter.Match(&subject) == conn.No {
				return nil
			}
			_, row := t.add()
			row.sock = *sock
			if m != nil {
				r.snap.memory = append(r.snap.memory, *m)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	// A dump that resumes in the middle of a bucket may list a socket twice.
	r.cookie = newIndex(t.n)
	for i := range t.n {
		row := t.at(i)
		if _, twice := r.find(row.sock.ID()); twice {
			row.skip = true
			continue
		}
		r.cookie.insert(row.sock.Cookie, i)
	}
	return nil
}

func (r *run) find(id conn.ID) (i uint32, ok bool) {
	r.cookie.find(id.Cookie, func(at uint32) bool {
		if s := &r.snap.table.at(at).sock; s.Cookie == id.Cookie && s.NetNS == id.NetNS {
			i, ok = at, true
		}
		return ok
	})
	return i, ok
}

// claim is an owner found for a row.
type claim struct {
	row   uint32
	owner conn.Owner
}

// findOwners joins the descriptors of all processes with the table, by inode.
func (r *run) findOwners(ctx context.Context) error {
	t := &r.snap.table
	byInode := newIndex(t.n)
	for i := range t.n {
		if row := t.at(i); row.sock.Inode != 0 && !row.skip {
			byInode.insert(uint64(row.sock.Inode), i)
		}
	}
	workers := runtime.GOMAXPROCS(0)
	claims := make([][]claim, workers)
	stats, err := r.proc.Sockets(ctx, procfd.SocketsOptions{Workers: workers}, func(worker int, inode uint32, o conn.Owner) {
		byInode.find(uint64(inode), func(i uint32) bool {
			if t.at(i).sock.Inode == inode {
				claims[worker] = append(claims[worker], claim{i, o})
			}
			return false // inode numbers wrap: the cookie decides when asked
		})
	})
	if err != nil {
		return fmt.Errorf("find owners: %w", err)
	}
	r.hidden = stats.Missing()
	total := 0
	for _, list := range claims {
		for _, c := range list {
			if row := t.at(c.row); row.ownerN < ^uint16(0) {
				row.ownerN++
				total++
			}
		}
	}
	r.snap.ownerList = make([]conn.Owner, total)
	next := uint32(0)
	for i := range t.n {
		row := t.at(i)
		row.owners = next
		next += uint32(row.ownerN)
		row.ownerN = 0
	}
	for _, list := range claims {
		for _, c := range list {
			row := t.at(c.row)
			if at := row.owners + uint32(row.ownerN); row.ownerN < ^uint16(0) && at < uint32(total) {
				r.snap.ownerList[at] = c.owner
				row.ownerN++
			}
		}
	}
	for i := range t.n {
		if owners := r.snap.ownersOf(t.at(i)); len(owners) > 1 {
			slices.SortFunc(owners, func(a, b conn.Owner) int {
				if a.PID != b.PID {
					return int(a.PID - b.PID)
				}
				return int(a.FD - b.FD)
			})
		}
		for _, o := range r.snap.ownersOf(t.at(i)) {
			r.process(o.PID)
		}
	}
	return nil
}

// process reads what there is to know of a process, once.
func (r *run) process(pid int32) *conn.Process {
	if p, ok := r.snap.processes[pid]; ok {
		return p
	}
	p, err := r.proc.Process(pid)
	if err != nil {
		p = conn.Process{PID: pid} // it has ended
	}
	r.snap.processes[pid] = &p
	return &p
}

func (r *run) subject(i uint32) conn.Subject {
	row := r.snap.table.at(i)
	return conn.Subject{
		Sock: &row.sock, Owners: r.snap.ownersOf(row),
		OwnersKnown: !r.req.NoOwners || r.req.Filter.NeedsOwners(),
		Process:     r.snap.Process,
	}
}

// selectRows drops the rows that the filter cannot match, owners now known.
func (r *run) selectRows() {
	ownerless := false
	for i := range r.snap.table.n {
		row := r.snap.table.at(i)
		if row.skip {
			continue
		}
		s := r.subject(i)
		row.skip = r.req.Filter.Match(&s) == conn.No
		ownerless = ownerless || !row.skip && row.ownerN == 0 && row.sock.Inode != 0
	}
	if ownerless && r.hidden != "" {
		r.note(true, "some connections show no owner: %s", r.hidden)
	}
}

// finish fixes which rows are shown, verdicts now known.
func (r *run) finish() {
	snap := r.snap
	if snap.hz == 0 {
		snap.hz = hz()
	}
	for i := range snap.table.n {
		row := snap.table.at(i)
		if row.skip {
			continue
		}
		if r.req.Filter.NeedsVerdict() {
			s := r.subject(i)
			s.Judged = true
			if snap.Asked {
				s.Verdict = row.ask.verdict
			} else {
				s.Verdict = verdict.Glance(snap.evidence(i, row), snap.Rules).Verdict
			}
			if r.req.Filter.Match(&s) != conn.Yes {
				continue
			}
		}
		snap.order = append(snap.order, i)
	}
}

// readSettings reads the keepalive settings of the selected connections from
// duplicates of their descriptors: of all when the request says so, else only
// where the pending timer does not tell already that keepalive is off.
func (r *run) readSettings(ctx context.Context) {
	t := &r.snap.table
	var rows []uint32
	for i := range t.n {
		row := t.at(i)
		if row.skip || row.ownerN == 0 || row.policy || row.sock.State == conn.Listen {
			continue
		}
		if on, known := keepaliveByTimer(&row.sock); r.req.Settings || on || !known {
			rows = append(rows, i)
		}
	}
	var denied [2]int
	r.parallel(rows, func(worker int, a *probe.Asker, part []uint32) {
		for _, i := range part {
			if ctx.Err() != nil {
				return
			}
			row := t.at(i)
			s, refusal := a.Settings(probe.Target{ID: row.sock.ID(), State: row.sock.State, Owners: r.snap.ownersOf(row)})
			r.learn(row, s, refusal == probe.NotRefused)
			if refusal.Privilege() {
				denied[worker]++
			}
		}
	}, nil)
	if n := denied[0] + denied[1]; n > 0 {
		r.note(true, "keepalive settings of %d connections could not be read (needs CAP_SYS_PTRACE, or the same user)", n)
	}
}

func (r *run) learn(row *row, s keepalive.Settings, known bool) {
	if known {
		row.settings, row.policy = compact(s), true
	}
}

// askers work side by side; more only wait for the same locks in the kernel.
const askers = 2

// parallel splits rows between askers.
func (r *run) parallel(rows []uint32, work func(worker int, a *probe.Asker, part []uint32), journal probe.Journal) {
	if len(rows) == 0 {
		return
	}
	var wg sync.WaitGroup
	size := (len(rows) + askers - 1) / askers
	for w := range askers {
		part := rows[min(w*size, len(rows)):min((w+1)*size, len(rows))]
		if len(part) == 0 {
			continue
		}
		wg.Go(func() {
			a := probe.New(probe.Options{Journal: journal})
			defer func() { _ = a.Close() }()
			work(w, a, part)
		})
	}
	wg.Wait()
}
