package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/netns"
	"deadpeer/internal/path"
	"deadpeer/internal/procfd"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/verdict"
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
	if r.foresees() {
		r.readSettings(ctx)
		r.selectForeseen()
	}
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

func (r *run) subject(row *row) conn.Subject {
	return conn.Subject{
		Sock: &row.sock, Owners: r.snap.ownersOf(row),
		OwnersKnown: r.wantsOwners(),
		Process:     r.snap.Process,
		Blind:       row.blind, Foreseen: row.foreseen,
	}
}

// foresees: a filter looks at forecasts.
func (r *run) foresees() bool { return r.req.foresee || r.req.Filter.NeedsForecast() }

// selectForeseen drops the rows that the filter cannot match, forecasts now
// known. It looks at them once: attaching changes them.
func (r *run) selectForeseen() {
	var c Connection
	for i := range r.snap.table.n {
		row := r.snap.table.at(i)
		if row.skip {
			continue
		}
		r.snap.fill(&c, row)
		row.blind, row.foreseen = c.blind()
		s := r.subject(row)
		row.skip = r.rejects(&s, r.req.Filter.NeedsVerdict())
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
			row.skip = r.rejects(&s, r.req.Filter.NeedsVerdict() || r.foresees())
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
