package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/held"
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
	e        *Engine
	req      Request
	proc     *procfd.FS
	spaces   map[uint32]*space
	sockets  *bpf.Sockets    // nil where BPF is not used
	ready    <-chan struct{} // what BPF lists is visited only when it is closed; nil for at once
	unlisted error           // why connections were not listed by BPF although sockets is open
	snap     *Snapshot
	index    index     // by cookie
	hidden   string    // why some owners may not have been found
	confined bool      // owners were looked for without the privilege to find all
	named    [64]int32 // processes looked at lately
	looks    looks
	ended    int // connections that ended before they could be changed

	settingsMu sync.Mutex // guards settingsAt and snap.settings
	settingsAt map[setting]uint32
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
	start := time.Now()
	n, denied := r.readSettings(ctx)
	if denied > 0 {
		r.note(true, "keepalive settings of %s could not be read (needs CAP_SYS_PTRACE, or the same user and kernel.yama.ptrace_scope 0)", count(denied, "connection"))
	}
	if n > 0 {
		r.how(start, "read the settings of %s by pidfd_getfd", count(n, "connection"))
	}
	if err := r.tie(ctx); err != nil {
		return nil, err
	}
	r.finish()
	return r.snap, ctx.Err()
}

// see lists the connections and who owns them.
func (e *Engine) see(ctx context.Context, req Request) (_ *run, err error) {
	r, err := e.begin(req)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if err := r.lookInto(ctx); err != nil {
		return nil, err
	}
	r.openSockets(false)
	start := time.Now()
	var owners *ownerSearch
	if r.wantsOwners() {
		owners = r.search(ctx) // while the kernel lists the connections
		defer owners.stop()
	}
	if err := r.dump(ctx); err != nil {
		return nil, err
	}
	r.listed(start, int(r.snap.table.n))
	if owners != nil && r.snap.table.n > 0 {
		if err := r.findOwners(owners); err != nil {
			return nil, err
		}
	}
	r.selectRows()
	if r.snap.attached, err = e.attachedSockets(ctx); err != nil {
		r.note(false, "%v", err)
	}
	return r, r.lookAgain()
}

func (r *run) wantsOwners() bool { return !r.req.NoOwners || r.req.Filter.NeedsOwners() }

// listed says how n connections were listed.
func (r *run) listed(start time.Time, n int) {
	how := "by sock_diag"
	if r.listsByBPF() {
		how = r.byBPF()
	}
	if r.unlisted != nil {
		r.withoutBPF(r.unlisted)
	}
	r.how(start, "listed %s in %s %s", count(n, "connection"), count(len(r.spaces), "network namespace"), how)
}

// lookAgain reads connections again whose pending timer would not be told to
// the tick, if they are few. BPF has told all of them so.
func (r *run) lookAgain() error {
	const few = 512 // some milliseconds' worth
	if !r.snap.kernel.counter.Known() || r.snap.table.n > few || r.listsByBPF() {
		return nil
	}
	for n, space := range r.spaces {
		var rows []*row
		var socks []*conn.Sock
		for i := range r.snap.table.n {
			row := r.snap.table.at(i)
			if !row.skip && row.sock.NetNS == n && row.sock.Timer != conn.TimerNone {
				fresh := row.sock
				rows, socks = append(rows, row), append(socks, &fresh)
			}
		}
		err := space.diag.Lookup(socks, func(i int, err error) {
			// One that is another thing now stays as it was selected.
			if err == nil && socks[i].State == rows[i].sock.State {
				rows[i].sock, rows[i].read = *socks[i], r.snap.kernel.reading(space.diag.Described())
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// begin opens what a run reads from. Close the run.
func (e *Engine) begin(req Request) (_ *run, err error) {
	if req.Filter == nil {
		if req.Filter, err = conn.ParseFilter(nil, conn.Resolver{}); err != nil {
			return nil, err
		}
	}
	if req.Timeout <= 0 {
		req.Timeout = defaultTimeout
	}
	req.Rules = req.Rules.WithDefaults()
	kernel := readKernel()
	r := &run{
		e: e, req: req, proc: procfd.New(e.options.ProcRoot), spaces: map[uint32]*space{}, settingsAt: map[setting]uint32{},
		snap: &Snapshot{
			TakenAt: kernel.taken, rules: req.Rules,
			outcomes: map[uint32]Outcome{}, kernel: kernel, namespaces: map[uint32]string{},
		},
	}
	if err := r.open(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// open opens sock_diag in every namespace the request names.
func (r *run) open() error {
	var list []*netns.NS
	var err error
	root := r.e.options.ProcRoot
	switch r.req.Netns {
	case "all":
		var hidden int
		list, hidden, err = netns.List(root, netns.NamedDir, "/run/docker/netns")
		if hidden > 0 {
			r.note(true, "network namespaces may have been missed; processes that hide theirs: %d (needs CAP_SYS_PTRACE)", hidden)
		}
	default:
		var n *netns.NS
		n, err = r.e.namespace(r.req.Netns)
		list = []*netns.NS{n}
	}
	if err != nil {
		return err
	}
	for _, name := range r.req.alsoNetns {
		if n, err := r.e.namespace(name); err == nil {
			list = append(list, n)
		}
	}
	for _, n := range list {
		if r.spaces[n.Inode()] != nil || r.req.onlyNetns != nil && !r.req.onlyNetns[n.Inode()] {
			_ = n.Close()
			continue
		}
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
		r.snap.namespaces[n.Inode()] = n.Name()
		if limits, err := readLimits(n); err == nil {
			r.snap.kernel.limits[n.Inode()] = limits
		} else {
			r.note(true, "no forecast for connections in network namespace %s that wait for an answer: %v", n.Name(), err)
		}
	}
	return nil
}

func (r *run) close() {
	r.looks.close()
	if r.sockets != nil {
		_ = r.sockets.Close() // nothing was written to it
	}
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

// how says how something was found out, and how long that took.
func (r *run) how(start time.Time, format string, args ...any) {
	r.took(time.Since(start), format, args...)
}

func (r *run) took(d time.Duration, format string, args ...any) {
	r.snap.How = append(r.snap.How, fmt.Sprintf(format, args...)+" in "+verdict.Duration(d))
}

// dump fills the table with what the kernel lists and the filter may match.
func (r *run) dump(ctx context.Context) error {
	t := &r.snap.table
	cookie := t.cookie
	for _, s := range r.spaces {
		first := t.n
		err := r.list(ctx, s, func() {
			t.truncate(first)
			r.index.rebuild(first, cookie)
			r.snap.memory = r.snap.memory[:min(first, uint32(len(r.snap.memory)))]
		}, func(one *row, m *sockdiag.Memory) error {
			// A list that resumes in the middle of a bucket may have a socket twice.
			if _, twice := r.find(one.sock.ID()); twice {
				return nil
			}
			r.index.insert(one.sock.Cookie, t.add(one), cookie)
			if m != nil {
				r.snap.memory = append(r.snap.memory, *m)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if r.req.Memory && uint32(len(r.snap.memory)) < t.n {
		return r.readMemory(ctx)
	}
	return nil
}

// readMemory reads what BPF does not tell.
func (r *run) readMemory(ctx context.Context) error {
	r.snap.memory = make([]sockdiag.Memory, r.snap.table.n)
	for _, s := range r.spaces {
		q := sockdiag.Query{States: r.req.Filter.States(), Filter: r.req.Filter.Kernel(conn.KernelSupport{}), Memory: true, NoInfo: true}
		err := s.diag.Dump(ctx, q, func(sock *conn.Sock, m *sockdiag.Memory) error {
			if i, ok := r.find(sock.ID()); ok {
				r.snap.memory[i] = *m
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rejects reports whether the filter does not select the subject. What the
// kernel did not tell may be taken for yes only while the question is open:
// owners or verdict are still to come.
func (r *run) rejects(s *conn.Subject, open bool) bool {
	t := r.req.Filter.Match(s)
	return t == conn.No || t == conn.Maybe && !open
}

// filterOpen: owners or verdict are still to come.
func (r *run) filterOpen() bool { return r.req.Filter.NeedsOwners() || r.req.Filter.NeedsVerdict() }

func (r *run) listsByBPF() bool { return r.sockets != nil && r.unlisted == nil }

// list visits what the kernel lists in a namespace and the filter may match.
// BPF does it where it can; it does not tell memory.
func (r *run) list(ctx context.Context, s *space, restart func(), visit func(*row, *sockdiag.Memory) error) error {
	states := r.req.Filter.States()
	if r.listsByBPF() && states&conn.Connections != 0 {
		var stopped error
		err := r.listByBPF(ctx, s, func(one *row, m *sockdiag.Memory) error {
			stopped = visit(one, m)
			return stopped
		})
		switch {
		case err == nil:
			if states &^= conn.Connections; states == 0 {
				return nil
			}
			restart = nil // what was visited twice is told apart
		case stopped != nil, ctx.Err() != nil:
			return err
		default:
			r.unlisted = err
			restart()
		}
	}
	return r.listByDiag(ctx, s, states, restart, visit)
}

func (r *run) listByDiag(ctx context.Context, s *space, states conn.States, restart func(), visit func(*row, *sockdiag.Memory) error) error {
	var subject conn.Subject
	var one row
	q := sockdiag.Query{
		States: states, Filter: r.req.Filter.Kernel(conn.KernelSupport{}), Memory: r.req.Memory && !r.listsByBPF(), Restart: restart,
	}
	open := r.filterOpen()
	return s.diag.Dump(ctx, q, func(sock *conn.Sock, m *sockdiag.Memory) error {
		if subject.Sock = sock; r.rejects(&subject, open) {
			return nil
		}
		one.sock, one.read = *sock, r.snap.kernel.reading(s.diag.Described())
		return visit(&one, m)
	})
}

func (r *run) find(id conn.ID) (i uint32, ok bool) {
	r.index.find(id.Cookie, func(at uint32) bool {
		if s := &r.snap.table.at(at).sock; s.Cookie == id.Cookie && s.NetNS == id.NetNS {
			i, ok = at, true
		}
		return ok
	})
	return i, ok
}

func (r *run) subject(row *row) conn.Subject {
	return conn.Subject{
		Sock: &row.sock, Owners: r.snap.ownersOf(row),
		OwnersKnown: r.wantsOwners(),
		Process:     r.snap.Process,
	}
}

// selectRows drops the rows that the filter cannot match, owners now known.
func (r *run) selectRows() {
	needed := r.req.Filter.NeedsOwners() // else dump has told it to every connection
	if !needed && r.hidden == "" {
		return
	}
	ownerless := false
	for i := range r.snap.table.n {
		row := r.snap.table.at(i)
		if needed {
			s := r.subject(row)
			row.skip = r.rejects(&s, r.req.Filter.NeedsVerdict())
		}
		ownerless = ownerless || !row.skip && row.lost()
	}
	r.noteHidden(ownerless)
}

// lost: it has an owner that was not found.
func (r *row) lost() bool { return r.ownerN == 0 && r.sock.Inode != 0 }

// mayHide reports whether a process that we may not look into can be what holds
// a connection without an owner. A procfs mounted with hidepid does not even
// tell that there are such.
func (r *run) mayHide(row *row) bool {
	return row.lost() && (r.hidden != "" || r.confined && int(row.sock.UID) != os.Geteuid())
}

func (r *run) noteHidden(ownerless bool) {
	if ownerless && r.hidden != "" {
		r.note(true, "some connections show no owner: %s", r.hidden)
	}
}

// shownFirst are the verdicts that are looked for, in the order they are shown.
// The others come after them.
var shownFirst = [...]conn.Verdict{conn.Dead, conn.Suspect, conn.Stuck, conn.Leaked, conn.Unknown}

// finish fixes which rows are shown and in which order, verdicts now known.
func (r *run) finish() {
	snap := r.snap
	var places [len(shownFirst) + 1][]uint32
	for i := range snap.table.n {
		if !r.selected(snap.table.at(i)) {
			continue
		}
		place := len(shownFirst)
		if snap.Asked {
			if n := slices.Index(shownFirst[:], snap.table.asking(snap.table.at(i)).verdict); n >= 0 {
				place = n
			}
		}
		places[place] = append(places[place], i)
	}
	snap.order = slices.Concat(places[:]...)
	snap.everything = r.req.Filter.String() == ""
	if len(r.req.Databases) == 0 {
		h := newHinter(snap)
		for _, i := range snap.order {
			h.look(snap.table.at(i))
		}
	}
}

// selected reports whether the filter selects a row, its verdict now known.
func (r *run) selected(row *row) bool {
	snap := r.snap
	if row.skip || !r.req.Filter.NeedsVerdict() {
		return !row.skip
	}
	s := r.subject(row)
	s.Judged = true
	if snap.Asked {
		s.Verdict = snap.table.asking(row).verdict
	} else {
		s.Verdict = verdict.Glance(snap.evidence(row), snap.rules).Verdict
	}
	return !r.rejects(&s, false)
}

// readSettings reads the keepalive settings of the selected connections from
// duplicates of their descriptors: of all when the request says so, else only
// where the pending timer does not tell already that keepalive is off. It
// gives how many were read, and how many could not be.
func (r *run) readSettings(ctx context.Context) (n, failed int) {
	t := &r.snap.table
	var rows []uint32
	for i := range t.n {
		row := t.at(i)
		if !row.skip && row.ownerN > 0 && row.sock.State != conn.Listen && r.lacksSettings(row) {
			rows = append(rows, i)
		}
	}
	if len(rows) == 0 {
		return 0, 0
	}
	defer held.Spare(askers)()
	var denied atomic.Int64
	var wg sync.WaitGroup
	for part := range slices.Chunk(rows, (len(rows)+askers-1)/askers) {
		wg.Go(func() {
			a := probe.New(probe.Options{})
			defer func() { _ = a.Close() }()
			for _, i := range part {
				if ctx.Err() != nil {
					return
				}
				row := t.at(i)
				s, refusal := a.Settings(probe.Target{ID: row.sock.ID(), State: row.sock.State, Owners: r.snap.ownersOf(row)})
				r.learn(row, s, refusal == probe.NotRefused)
				if refusal.Privilege() {
					denied.Add(1)
				}
			}
		})
	}
	wg.Wait()
	failed = int(denied.Load())
	return len(rows) - failed, failed
}

// lacksSettings reports whether the settings of a row are to be read.
func (r *run) lacksSettings(row *row) bool {
	if row.settings != 0 {
		return false
	}
	on, known := keepaliveByTimer(&row.sock)
	return r.req.Settings || on || !known
}

// learn books the settings of a row, of which there are few different ones.
func (r *run) learn(row *row, s keepalive.Settings, known bool) {
	if !known {
		return
	}
	r.settingsMu.Lock()
	defer r.settingsMu.Unlock()
	if row.settings != 0 && r.snap.settings[row.settings-1].Settings == s {
		return // and who chose them may be known
	}
	row.settings = r.book(setting{Settings: s})
}

// book gives what a row's settings are to be.
func (r *run) book(s setting) uint32 {
	at, ok := r.settingsAt[s]
	if !ok {
		r.snap.settings = append(r.snap.settings, s)
		at = uint32(len(r.snap.settings))
		r.settingsAt[s] = at
	}
	return at
}

// askers work side by side; more only wait for the same locks in the kernel.
const askers = 2
