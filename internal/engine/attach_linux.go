package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"deadpeer/internal/attach"
	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/journal"
	"deadpeer/internal/sockdiag"
	"deadpeer/keepalive"
)

// Attach puts policies on the sockets of running programs, having written
// down what they had. It sends nothing itself; but a connection that has been
// idle for longer than its new policy allows is probed by the kernel at once.
// Connections that the caller's own session depends on are left alone unless
// the filter names them by cookie. Needs what Check needs, but for
// CAP_NET_ADMIN. When ctx ends early everything is put back.
func (e *Engine) Attach(ctx context.Context, req AttachRequest) (_ *Attached, err error) {
	hooks, err := req.futureRules()
	if err != nil {
		return nil, err
	}
	if !req.DryRun {
		if len(hooks) > 0 && !e.options.NoBPF { // said before anything is made
			if err := bpf.Allowed(); err != nil {
				return nil, fmt.Errorf("give future connections a policy: %w; %s", err, withoutNew)
			}
		}
		unlock, err := e.lockSettings(ctx)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	m := &making{e: e}
	defer func() { err = m.settle(context.WithoutCancel(ctx), err) }()
	if len(hooks) > 0 && !req.DryRun {
		// First of all: what is made from now on is theirs, the rest is listed.
		if err := m.hook(req, hooks); err != nil {
			return nil, err
		}
	}
	req.NoOwners, req.Settings = false, true
	req.foresee = slices.ContainsFunc(req.Rules, func(rule AttachRule) bool { return rule.Filter != nil && rule.Filter.NeedsForecast() })
	r, err := e.see(ctx, req.Request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	out := &Attached{Snapshot: r.snap, New: len(hooks) > 0, Rules: listed(req.about().Rules)}
	items, rows := r.attachItems(req.Rules)
	if len(items) > 0 || m.file != nil {
		if err := m.findOlder(ctx, req.DryRun); err != nil {
			return nil, err
		}
		programs, err := e.enforcedPrograms(ctx)
		if err != nil {
			r.note(false, "%v", err)
		}
		items, rows = r.notEnforced(m.older, programs, items, rows)
	}
	if req.DryRun {
		r.readSettings(ctx)
		for n, i := range rows {
			o, why := r.planned(i, items[n].Policy)
			r.snap.outcomes[i], out.Unfit = o, cmp.Or(out.Unfit, why)
		}
	} else if len(items) > 0 || m.file != nil {
		if m.file == nil {
			req.Request = r.req
			if err := m.create(req); err != nil {
				return nil, err
			}
		}
		if out.Unfit, err = r.attachTo(ctx, m, items, rows); err != nil {
			return nil, err
		}
		if err := r.hold(m.file.ID, hooks, items, rows); err != nil {
			return nil, err
		}
		if m.file.Len() > 0 || out.New {
			out.ID = m.file.ID
		}
	}
	r.readSettings(ctx)
	r.finish()
	r.countOutcomes(out)
	r.findSlowest(out, items, rows)
	out.TakenOver = m.takenOver(r, items, rows)
	if err := r.foreseeInFlight(out, items, rows, req.DryRun); err != nil {
		return nil, err
	}
	return out, nil
}

// lockSettings keeps every other deadpeer from asking and attaching, and puts
// back what one that was killed while asking has left: its values must not be
// taken for the program's own.
func (e *Engine) lockSettings(ctx context.Context) (unlock func(), err error) {
	e.asking.Lock()
	if _, err := e.recover(ctx); err != nil {
		e.asking.Unlock()
		return nil, fmt.Errorf("put back what a killed deadpeer left: %w", err)
	}
	lock, err := journal.Lock(ctx, e.options.RuntimeDir)
	if err != nil {
		e.asking.Unlock()
		return nil, err
	}
	return func() {
		_ = lock.Close() // the process gives it back at the latest
		e.asking.Unlock()
	}, nil
}

// attachItems makes the items of the selected connections. It leaves out those
// that nobody holds any more and listeners, and books why others cannot be.
func (r *run) attachItems(rules []AttachRule) (items []attach.Item, rows []uint32) {
	guard := r.newGuard()
	most := 0
	for i := range r.snap.table.n {
		if r.selected(r.snap.table.at(i)) {
			most++
		}
	}
	items, rows = make([]attach.Item, 0, most), make([]uint32, 0, most)
	for i := range r.snap.table.n {
		row := r.snap.table.at(i)
		s := &row.sock
		if !r.selected(row) {
			continue
		}
		rule := r.ruleOf(row, rules)
		if rule < 0 || s.State == conn.Listen || orphaned(s) {
			row.skip = true
			continue
		}
		if rules[rule].New && s.State == conn.SynSent {
			row.skip = true // it is the hook's, which would not tell it from one that was looked at too late
			continue
		}
		refuse := func(why string) { r.snap.outcomes[i] = Outcome{Action: actionAttach, Error: why} }
		if p := guard.of(row); p != unprotected && !r.req.Filter.Names(s.Cookie) {
			refuse("protected: " + p.String())
			continue
		}
		switch {
		case s.MPTCP:
			refuse(held.MPTCP.Error())
		case row.ownerN == 0 && r.mayHide(row):
			refuse(held.Hidden.Error())
		case row.ownerN == 0:
			refuse(held.NoOwner.Error())
		default:
			it := attach.Item{Target: attach.Target{ID: s.ID(), Owners: r.snap.ownersOf(row)}, Sock: *s, Rule: uint16(rule), Policy: rules[rule].Policy}
			it.Found, it.Known = r.settingsOf(row)
			rows, items = append(rows, i), append(items, it)
		}
	}
	return items, rows
}

// ruleOf is the first rule that matches a row, -1 for none.
func (r *run) ruleOf(row *row, rules []AttachRule) int {
	s := r.subject(row)
	for n := range rules {
		if f := rules[n].Filter; f == nil || f.Match(&s) == conn.Yes {
			return n
		}
	}
	return -1
}

// attachTo changes the sockets, and says at length what the first outcome about
// a user timeout means.
func (r *run) attachTo(ctx context.Context, m *making, items []attach.Item, rows []uint32) (unfit string, err error) {
	if err := r.e.adopt(ctx, m.attachment(), m.older); err != nil {
		return "", err
	}
	given := m.file.Len()
	items, rows = r.notYet(m.file, items, rows)
	means := r.means(len(items))
	defer means.close()
	items, rows, quiet := probedLast(items, rows)
	start := time.Now()
	do := m.run()
	do.Reread, do.Ended = r.reread, r.hasEnded
	book := func(rows []uint32) func(int, attach.Report) {
		return func(n int, rep attach.Report) {
			unfit = cmp.Or(unfit, rep.Detail)
			r.bookAttached(rows[n], rep)
		}
	}
	do.Transport, do.Batch = means.transport, means.batch
	err = do.Attach(ctx, items[:quiet], book(rows[:quiet]))
	if err == nil {
		do.Transport, do.Batch = means.duplicates, 0
		err = do.Attach(ctx, items[quiet:], book(rows[quiet:]))
	}
	r.how(start, "changed %s by %s", count(m.file.Len()-given, "connection"), means.name)
	if err != nil {
		return unfit, err
	}
	return unfit, r.lookOver(context.WithoutCancel(ctx), rows) // only to show what was done
}

// settingsOf gives what a row was seen to have.
func (r *run) settingsOf(row *row) (s keepalive.Settings, known bool) {
	if row.settings == 0 {
		return s, false
	}
	return r.snap.settings[row.settings-1].Settings, true
}

// bookAttached takes over what became of a row. One that has ended is shown no
// more.
func (r *run) bookAttached(i uint32, rep attach.Report) {
	row := r.snap.table.at(i)
	if row.skip = rep.Ended; rep.Ended {
		r.ended++
		return
	}
	r.snap.outcomes[i] = Outcome{Action: actionAttach, Done: rep.Done, Error: rep.Why}
	r.bookSettings(row, rep)
	if rep.Done {
		r.snap.attached[row.sock.ID()] = true
	}
}

// bookSettings notes what a row has after it was changed; else it is to be
// read.
func (r *run) bookSettings(row *row, rep attach.Report) {
	if row.settings = 0; rep.Known {
		row.settings = r.book(setting{Settings: rep.Now, origin: OriginProgram})
	}
}

// hasEnded reports whether a connection whose descriptor was not found is gone
// for good: the kernel lists it no more, or nobody holds it. Else it may be on
// its way from one process to another.
func (r *run) hasEnded(id conn.ID) bool {
	i, listed := r.find(id)
	if !listed {
		return true
	}
	now, gone := r.snap.table.at(i).sock, false
	err := r.spaces[id.NetNS].diag.Lookup([]*conn.Sock{&now}, func(_ int, err error) {
		gone = errors.Is(err, sockdiag.ErrGone) || err == nil && orphaned(&now)
	})
	return err == nil && gone
}

// orphaned reports whether nobody holds a connection any more. One that is open
// and has no inode waits to be accepted.
func orphaned(s *conn.Sock) bool {
	return s.Inode == 0 && s.State != conn.Established && s.State != conn.CloseWait
}

// probedLast puts the connections that the policy makes the kernel probe at once
// at the end, and gives the number of the others. They are changed at a pace, a
// few at a time: probes of tens of thousands in one tick overflow queues on
// their way, and an interval later once more.
func probedLast(items []attach.Item, rows []uint32) (_ []attach.Item, _ []uint32, quiet int) {
	var last []attach.Item
	var lastRows []uint32
	first, firstRows := items[:0], rows[:0]
	for n, it := range items {
		const soon = time.Second // what may pass until it is its turn
		if heard, told := it.Sock.Heard(); it.Policy.Idle > 0 && (!told || heard+soon >= it.Policy.Idle) {
			last, lastRows = append(last, it), append(lastRows, rows[n])
		} else {
			first, firstRows = append(first, it), append(firstRows, rows[n])
		}
	}
	return append(first, last...), append(firstRows, lastRows...), len(first)
}

// notEnforced leaves out the connections on which programs are held to a policy,
// by an older attachment or the hook they were started with: it would limit what
// is set by a descriptor, and go on limiting the programs.
func (r *run) notEnforced(older []attachment, programs map[conn.ID]string, items []attach.Item, rows []uint32) (leftItems []attach.Item, leftRows []uint32) {
	for n, i := range rows {
		id := items[n].Target.ID
		if program := programs[id]; program != "" {
			r.snap.outcomes[i] = Outcome{Action: actionAttach, Error: "deadpeer run enforces its policy on it until the program ends: " + program}
			continue
		}
		if at := slices.IndexFunc(older, func(o attachment) bool { return o.enforces(id) }); at >= 0 {
			why := fmt.Sprintf("attachment %s enforces its policy on it: deadpeer detach %[1]s ends that", older[at].ID)
			r.snap.outcomes[i] = Outcome{Action: actionAttach, Error: why}
			continue
		}
		leftItems, leftRows = append(leftItems, items[n]), append(leftRows, i)
	}
	return leftItems, leftRows
}

// notYet leaves out the connections that a hook has given the policy already.
func (r *run) notYet(file *journal.Attachment, items []attach.Item, rows []uint32) (leftItems []attach.Item, leftRows []uint32) {
	if file.Len() == 0 {
		return items, rows
	}
	for n, i := range rows {
		if _, given := file.Socket(items[n].Target.ID); given {
			r.snap.outcomes[i] = Outcome{Action: actionAttach, Done: true}
			continue
		}
		leftItems, leftRows = append(leftItems, items[n]), append(leftRows, i)
	}
	return leftItems, leftRows
}

func (r *run) socksOf(rows []uint32) []*conn.Sock {
	socks := make([]*conn.Sock, len(rows))
	for n, i := range rows {
		socks[n] = &r.snap.table.at(i).sock
	}
	return socks
}

// reread looks sockets up again. Those that have ended stay as they were.
func (r *run) reread(ctx context.Context, socks []*conn.Sock) error {
	bySpace := map[uint32][]*conn.Sock{}
	for _, s := range socks {
		bySpace[s.NetNS] = append(bySpace[s.NetNS], s)
	}
	for n, list := range bySpace {
		for len(list) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := list[:min(lookUpLen, len(list))]
			list = list[len(part):]
			fresh := make([]conn.Sock, len(part))
			look := make([]*conn.Sock, len(part))
			for k, s := range part {
				fresh[k] = *s
				look[k] = &fresh[k]
			}
			err := r.spaces[n].diag.Lookup(look, func(k int, err error) {
				if err == nil {
					*part[k] = fresh[k]
				}
			})
			if err != nil && !errors.Is(err, sockdiag.ErrGone) {
				return err
			}
		}
	}
	return nil
}

// lookOver reads rows again: many of them by listing all there are, which takes
// a third of the time a connection.
func (r *run) lookOver(ctx context.Context, rows []uint32) error {
	const many = 2048
	if len(rows) < many {
		return r.reread(ctx, r.socksOf(rows))
	}
	wanted := make([]bool, r.snap.table.n)
	for _, i := range rows {
		wanted[i] = true
	}
	for _, s := range r.spaces {
		err := r.list(ctx, s, func() {}, func(one *row, _ *sockdiag.Memory) error {
			if i, ok := r.find(one.sock.ID()); ok && wanted[i] {
				row := r.snap.table.at(i)
				row.sock, row.read = one.sock, one.read
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// countOutcomes sums the outcomes of the connections shown.
func (r *run) countOutcomes(out *Attached) {
	out.Ended = r.ended
	for _, i := range r.snap.order {
		o, ok := r.snap.outcomes[i]
		if !ok {
			continue
		}
		out.Matched++
		if o.Done || o.Error == "" {
			out.Changed++
		}
		if o.Error != "" {
			out.Failed++
		}
		out.Denied = out.Denied || held.Refusal(o.Error).Privilege()
	}
}
