package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/internal/path"
	"deadpeer/internal/probe"
	"deadpeer/internal/verdict"
)

const (
	batchLen    = 128  // questions put under one journal write
	maxControls = 256  // living connections asked again, per path
	fewRows     = 2048 // up to here sockets are looked up one by one, beyond all are listed
	pollFew     = 300 * time.Microsecond
	pollMany    = 5 * time.Millisecond
	pollLate    = 20 * time.Millisecond
	eager       = 100 * time.Millisecond // after a question, while answers are most likely
	patience    = 5 * time.Second        // with what cannot be asked just now
	deadEvery   = 3 * time.Second        // how often a peer proven dead is asked while silence is waited for
)

// group is a path: an interface and next hop in one namespace.
type group struct {
	space    *space
	hop      path.Hop
	controls []uint32
}

type groupKey struct {
	netns uint32
	hop   path.Hop
}

// inquiry is the asking part of a run.
type inquiry struct {
	*run
	epoch     time.Time
	hold      time.Duration // silence that settles a dead one; 0: the proof does
	journal   *journal.Journal
	askers    [askers]*probe.Asker
	groups    []group
	groupOf   map[groupKey]uint16
	pending   []uint32
	open      []uint32 // for sweep, to use again
	dueRows   []uint32 // for due, likewise
	watch     *watch
	sweeps    uint8
	swept     stamp // when the last sweep began
	sweepCost time.Duration
	asked     int
}

// Check asks every selected connection's peer now. Needs Linux 5.6, and root
// or CAP_SYS_PTRACE and CAP_NET_ADMIN; without them only the caller's own
// connections are asked, by the keepalive way. A question to a peer that has
// forgotten the connection draws a RST and so ends it. When ctx ends early
// everything is put back and what was found so far is returned with its error.
func (e *Engine) Check(ctx context.Context, req Request) (*Snapshot, error) {
	r, err := e.see(ctx, req)
	if err != nil {
		return nil, err
	}
	defer r.close()
	err = r.ask(ctx, 0, func(q *inquiry) error {
		holds, err := q.holds(ctx, false)
		for _, h := range holds {
			if h != "" {
				r.note(false, "release would hold back: %s", h)
			}
		}
		return err
	})
	r.finish()
	return r.snap, err
}

// ask puts questions until every selected connection has its verdict, or the
// time is up. A peer proven dead goes on being asked until it has been silent
// for hold. then, when not nil, is called while the journal and the watch are
// still open.
func (r *run) ask(ctx context.Context, hold time.Duration, then func(*inquiry) error) (err error) {
	r.snap.Asked = true
	r.e.asking.Lock()
	defer r.e.asking.Unlock()
	if n, err := r.e.recover(ctx); err != nil {
		r.note(true, "a killed deadpeer left settings that could not be put back: %v", err)
	} else if n > 0 {
		r.note(false, "put back %s that a killed deadpeer had left changed", count(n, "setting"))
	}
	q := &inquiry{run: r, hold: hold, groupOf: map[groupKey]uint16{}}
	if q.journal, err = journal.Open(r.e.options.RuntimeDir, journal.Options{}); err != nil {
		return err
	}
	defer func() {
		for _, a := range q.askers {
			if a != nil {
				err = errors.Join(err, a.Close())
			}
		}
		err = errors.Join(err, q.journal.Close())
	}()
	for w := range q.askers {
		q.askers[w] = probe.New(probe.Options{Journal: q.journal, Step: r.e.options.Step})
	}
	for _, s := range r.spaces {
		if s.paths, err = path.Open(ctx, s.ns); err != nil {
			return err
		}
	}
	q.watch = newWatch()
	defer q.watch.close()
	if err := q.prepare(); err != nil {
		return err
	}
	start := time.Now()
	err = q.loop(ctx)
	r.how(start, "asked %s", count(q.asked, "connection"))
	r.countRefusals()
	if err == nil && then != nil {
		err = then(q)
	}
	return err
}

// prepare settles what is not to be asked and finds the path of the rest.
func (q *inquiry) prepare() error {
	guard := q.newGuard()
	t := &q.snap.table
	q.pending = make([]uint32, 0, t.n)
	for i := range t.n {
		row := t.at(i)
		if row.skip {
			continue
		}
		s := &row.sock
		row.ask.protection = guard.of(row)
		if q.req.Filter.Names(s.Cookie) {
			row.ask.protection = unprotected
		}
		if !q.mayAsk(row) {
			q.judge(i, row, 0)
			row.ask.set(settled)
			continue
		}
		route, err := q.route(row)
		switch {
		case err != nil:
			return err
		case route.Local && !q.req.Filter.Names(s.Cookie):
			row.ask.protection = bothEndsHere
		case route.Missing:
			row.ask.refusal = probe.NoRoute
		}
		if row.ask.protection != unprotected || row.ask.refusal != probe.NotRefused {
			q.judge(i, row, 0)
			row.ask.set(settled)
			continue
		}
		if row.ask.group, err = q.group(s.NetNS, route.Hop); err != nil {
			return err
		}
		q.pending = append(q.pending, i)
	}
	q.epoch = time.Now()
	return nil
}

func (q *inquiry) route(row *row) (path.Route, error) {
	s := &row.sock
	from := path.RouteKey{Local: s.Local().Addr().Unmap(), Interface: s.Interface, Mark: s.Mark}
	route, err := q.spaces[s.NetNS].paths.Route(s.Peer().Addr().Unmap(), from)
	if err != nil {
		return route, fmt.Errorf("find the path to %s: %w", s.Peer().Addr(), err)
	}
	return route, nil
}

// group gives the number of a path, a new one where it has none.
func (q *inquiry) group(netns uint32, hop path.Hop) (uint16, error) {
	key := groupKey{netns, hop}
	g, ok := q.groupOf[key]
	if !ok {
		if len(q.groups) == math.MaxUint16 {
			return 0, fmt.Errorf("more than %d next hops", math.MaxUint16)
		}
		g = uint16(len(q.groups))
		q.groupOf[key] = g
		q.groups = append(q.groups, group{space: q.spaces[netns], hop: hop})
		q.snap.fails = append(q.snap.fails, verdict.Fail{})
	}
	return g, nil
}

// reroute finds the path of a connection anew, before the first question after
// spoilt ones, and reports whether there is one.
func (q *inquiry) reroute(row *row) (bool, error) {
	a := &row.ask
	route, err := q.route(row)
	if err != nil {
		return false, err
	}
	if route.Missing {
		if a.last = q.now(); a.refusal != probe.NoRoute {
			a.refusal, a.first = probe.NoRoute, a.last
		}
		return false, nil
	}
	if a.refusal == probe.NoRoute {
		a.refusal = probe.NotRefused
	}
	a.group, err = q.group(row.sock.NetNS, route.Hop)
	return err == nil, err
}

// mayAsk reports whether the connection is of a kind that is asked at all.
func (q *inquiry) mayAsk(row *row) bool {
	s := &row.sock
	switch {
	case row.ask.protection != unprotected:
		return false
	case s.MPTCP:
		row.ask.refusal = probe.MPTCPSocket
	case s.State == conn.CloseWait && verdict.Glance(q.snap.evidence(0, row), q.req.Rules).Verdict == conn.Leaked:
		return false // its peer closed long ago: a question could only draw a RST
	case verdict.Transient(s.State) || !conn.Connections.Has(s.State):
		return false
	case row.ownerN == 0:
		row.ask.refusal = probe.NoOwner
	}
	return row.ask.refusal == probe.NotRefused
}

func (q *inquiry) now() stamp { return q.stamp(time.Now()) }

func (q *inquiry) stamp(t time.Time) stamp { return stampOf(t.Sub(q.epoch)) }

// loop asks, listens and judges until nothing is pending.
func (q *inquiry) loop(ctx context.Context) error {
	deadline := q.epoch.Add(q.hold + q.req.Timeout)
	for ctx.Err() == nil {
		start := time.Now()
		swept := q.stamp(start)
		if err := q.sweep(ctx, swept); err != nil {
			return err
		}
		q.judgeAll(swept)
		q.sweepCost = time.Since(start)
		q.progress()
		if len(q.pending) == 0 || time.Now().After(deadline) {
			break
		}
		due, err := q.due()
		if err != nil {
			return err
		}
		if len(due) > 0 {
			if err := q.putAll(ctx, due); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(q.pause()):
		}
	}
	return ctx.Err()
}

// pause is how long to wait before the next sweep: shortly while answers are
// most likely, and never so that sweeping takes most of the time; but not
// beyond the moment at which the next question counts as unanswered.
func (q *inquiry) pause() time.Duration {
	now := q.now()
	next, young, out := stamp(math.MaxUint32), false, 0
	for _, i := range q.pending {
		row := q.snap.table.at(i)
		if row.ask.is(outstanding) {
			out++
			young = young || q.young(row, now)
		}
		next = min(next, q.dueAt(row))
	}
	poll := pollLate
	switch {
	case young && out <= fewRows/8:
		poll = pollFew
	case young:
		poll = pollMany
	}
	poll = max(poll, 2*q.sweepCost)
	if next > now {
		return max(min(poll, (next-now).span()), pollFew)
	}
	return pollFew
}

// young reports whether the last question to the row was put so recently that
// its answer is likely to come now.
func (q *inquiry) young(row *row, now stamp) bool {
	return (now - row.ask.last).span() < eager+time.Duration(row.sock.RTTUS)*time.Microsecond
}

// dueAt is when the next question to the row may be put.
func (q *inquiry) dueAt(row *row) stamp {
	a := &row.ask
	if a.questions == 0 && a.refusal == probe.NotRefused {
		return 0
	}
	wait := verdict.Wait(&row.sock)
	if a.verdict == conn.Dead {
		wait = max(wait, min(deadEvery, q.hold/4))
	}
	return a.last + stampOf(wait)
}

// due lists the rows to ask now: the silent, and with them the living of the
// same paths as controls.
func (q *inquiry) due() ([]uint32, error) {
	now := q.now()
	due := q.dueRows[:0]
	defer func() { q.dueRows = due[:0] }()
	silent := map[uint16]bool{}
	for _, i := range q.pending {
		row := q.snap.table.at(i)
		if now >= q.dueAt(row) {
			if row.ask.questions > 0 && row.ask.unanswered == 0 {
				if ok, err := q.reroute(row); err != nil {
					return nil, err
				} else if !ok {
					continue
				}
			}
			due = append(due, i)
		}
		if row.ask.verdict != conn.Dead {
			silent[row.ask.group] = true
		}
	}
	for g := range q.groups {
		if !silent[uint16(g)] {
			continue
		}
		for _, i := range q.groups[g].controls {
			if row := q.snap.table.at(i); !row.ask.is(outstanding) && !row.ask.is(ended) && expired(row, now) {
				due = append(due, i)
			}
		}
	}
	return due, nil
}

// putAll puts questions for as long as some are due and nothing is to be
// learned from a sweep that the next question does not tell as well: it reads
// what arrived before it. Where sweeps are costly they would only make the
// questions late.
func (q *inquiry) putAll(ctx context.Context, due []uint32) error {
	for {
		firstOnes := false
		for _, i := range due {
			firstOnes = firstOnes || q.snap.table.at(i).ask.questions == 0
		}
		if err := q.put(ctx, due); err != nil || firstOnes || ctx.Err() != nil || len(q.pending) <= fewRows {
			return err
		}
		var err error
		if due, err = q.due(); err != nil || len(due) == 0 || q.anyRipe() {
			return err
		}
	}
}

// anyRipe reports whether a sweep may settle a row.
func (q *inquiry) anyRipe() bool {
	needed, now := q.needed(), q.now()
	return slices.ContainsFunc(q.pending, func(i uint32) bool { return q.ripe(q.snap.table.at(i), needed, now) })
}

// needed is for each path how many unanswered questions a proof takes.
func (q *inquiry) needed() []uint16 {
	list := make([]uint16, len(q.groups))
	for g := range list {
		list[g] = uint16(q.snap.fails[g].Needed())
	}
	return list
}

// ripe reports whether the verdict on the row is due unless something has
// arrived.
func (q *inquiry) ripe(row *row, needed []uint16, now stamp) bool {
	a := &row.ask
	silence := verdict.MinSilence
	if a.verdict == conn.Dead {
		silence = q.hold
	}
	return a.is(outstanding) && a.unanswered >= needed[a.group] && expired(row, now) && (now-a.first).span() >= silence
}

// put puts one question to every row. One process per host does so at a time.
func (q *inquiry) put(ctx context.Context, rows []uint32) error {
	lock, err := journal.Lock(ctx, q.e.options.RuntimeDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	generations := q.generations()
	var next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	const credit = 2 * time.Millisecond // what may be caught up with after a delay
	pace := time.Duration(batchLen*askers) * time.Second / time.Duration(q.e.options.Rate)
	for _, a := range q.askers {
		if len(rows) <= batchLen && a != q.askers[0] {
			break
		}
		wg.Go(func() {
			var targets []probe.Target
			var results [batchLen]probe.Result
			slot := time.Now()
			// The next round may give its connections to another asker. What
			// the journal was not told is put back twice, which does no harm.
			defer func() { _ = a.Flush() }()
			for ctx.Err() == nil {
				from := int(next.Add(batchLen)) - batchLen
				if from >= len(rows) {
					return
				}
				if ahead := time.Until(slot); ahead > credit/4 {
					time.Sleep(ahead)
				} else if ahead < -credit {
					slot = time.Now().Add(-credit)
				}
				slot = slot.Add(pace)
				batch := rows[from:min(from+batchLen, len(rows))]
				targets = targets[:0]
				for _, i := range batch {
					row := q.snap.table.at(i)
					targets = append(targets, probe.Target{
						ID: row.sock.ID(), State: row.sock.State, Owners: q.snap.ownersOf(row), Learn: q.lacksSettings(row), Reuses: row.ask.is(reuses),
					})
				}
				a.Ask(targets, func(n int, r probe.Result) { results[n] = r })
				mu.Lock()
				for n, i := range batch {
					q.merge(i, results[n], generations)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
}

func (q *inquiry) generations() []uint32 {
	list := make([]uint32, len(q.groups))
	for g := range q.groups {
		list[g] = q.watch.gaps() + uint32(q.groups[g].space.paths.Generation(q.groups[g].hop))
	}
	return list
}

// merge takes over the result of one question.
func (q *inquiry) merge(i uint32, r probe.Result, generations []uint32) {
	row := q.snap.table.at(i)
	a := &row.ask
	q.learn(row, r.Settings, r.Known)
	a.clear(outstanding)
	if a.clear(reuses); r.Reuses {
		a.set(reuses)
	}
	if r.State != 0 && !r.Ended {
		row.sock.State = r.State
	}
	if a.questions == 0 {
		a.base = row.sock.SegsIn
	}
	switch {
	case r.Ended:
		if a.set(ended); r.SegsIn == a.base {
			a.set(gaveUp)
		}
		a.last = q.now()
		a.questions = max(a.questions, 1)
	case r.Refusal.Passing():
		a.refusal, a.last = r.Refusal, q.now()
		if r.Refusal == probe.TooFresh && a.questions == 0 && r.SegsIn != a.base {
			a.set(settled) // heard since we looked
		}
	case r.Refusal == probe.OwnerGone, r.Refusal == probe.Reused:
		a.refusal, a.last = r.Refusal, q.now()
		a.questions = max(a.questions, 1)
		a.set(outstanding) // look what has become of it
	case r.Refusal != probe.NotRefused:
		a.refusal, a.last = r.Refusal, q.now()
		a.set(settled)
	case a.is(counted): // a control
		a.refusal = probe.NotRefused
		a.base = r.SegsIn
		a.questions++
		a.last = q.stamp(r.At)
		a.set(outstanding)
	default:
		a.refusal = probe.NotRefused
		at := q.stamp(r.At)
		if a.questions == 0 {
			a.base = r.SegsIn
			q.asked++
		}
		if a.questions < math.MaxUint16 {
			a.questions++
		}
		if a.questions > 1 && r.SegsIn != a.base {
			q.heard(i, row, at-a.last)
			a.last = at
			return
		}
		if a.unanswered == 0 {
			a.first, a.generation = at, generations[a.group]
		}
		if a.unanswered < math.MaxUint16 {
			a.unanswered++
		}
		a.last = at
		a.set(outstanding)
	}
}

// heard books an answer that took at most the given time.
func (q *inquiry) heard(i uint32, row *row, took stamp) {
	a := &row.ask
	f := &q.snap.fails[a.group]
	now := q.now()
	a.clear(outstanding)
	if a.is(counted) {
		f.Questions++
		a.answer = now
		return
	}
	if !a.is(answered) {
		a.answeredUS = uint32(took.span().Microseconds())
	}
	a.set(answered)
	a.answer, a.unanswered = now, 0
	f.Controls++
	f.Questions += int(a.questions)
	f.Unanswered += int(a.questions) - 1
	if g := &q.groups[a.group]; len(g.controls) < maxControls && row.sock.State == conn.Established {
		g.controls = append(g.controls, i)
	}
}

// judgeAll judges every pending row by a sweep that began at the given time,
// and keeps pending those that need more questions.
func (q *inquiry) judgeAll(swept stamp) {
	generations := q.generations()
	left := q.pending[:0]
	for _, i := range q.pending {
		row := q.snap.table.at(i)
		a := &row.ask
		if a.unanswered > 0 && a.generation != generations[a.group] {
			// Spoilt: whatever went unanswered may have had another cause.
			a.unanswered = 0
			a.clear(outstanding)
		}
		if a.refusal == probe.OwnerGone || a.refusal == probe.Reused {
			a.unanswered = 0 // nobody was asked to the end
			a.set(settled)
		}
		q.judge(i, row, swept)
		switch {
		case verdict.Transient(row.sock.State):
			a.set(settled)
		case a.is(ended), a.verdict == conn.Alive, a.verdict == conn.Stuck, a.is(answered) && a.unanswered == 0:
			a.set(settled)
		case a.verdict == conn.Dead && (swept-a.first).span() >= q.hold:
			a.set(settled)
		case a.questions == 0 && a.refusal.Passing() && swept.span() > patience,
			a.refusal == probe.NoRoute && a.last > a.first+stampOf(patience):
			a.set(settled)
		}
		if !a.is(settled) {
			left = append(left, i)
			continue
		}
		if a.is(answered) && !a.is(ended) && row.sock.State == conn.Established {
			a.set(counted)
		}
	}
	q.pending = left
}

func expired(row *row, swept stamp) bool {
	return swept >= row.ask.last+stampOf(verdict.Wait(&row.sock))
}

// judge gives the row its verdict as of the given time.
func (q *inquiry) judge(i uint32, row *row, at stamp) {
	a := &row.ask
	a.judged = at
	j := verdict.Judge(q.snap.evidence(i, row), q.req.Rules)
	a.verdict, a.why = j.Verdict, j.Why
	if a.chance = 0; !math.IsNaN(j.FalseChance) {
		a.chance = max(float32(j.FalseChance), math.SmallestNonzeroFloat32)
	}
}

func (q *inquiry) progress() {
	if q.req.Progress == nil {
		return
	}
	p := Progress{Asked: q.asked, Elapsed: time.Since(q.epoch), Expected: max(q.hold, verdict.MinSilence)}
	for _, i := range q.pending {
		if a := &q.snap.table.at(i).ask; a.verdict == conn.Dead {
			p.Dead++
		} else {
			p.Silent++
		}
	}
	p.Alive = max(0, q.asked-p.Dead-p.Silent)
	q.req.Progress(p)
}

// countRefusals notes what more privilege would have allowed to ask.
func (r *run) countRefusals() {
	n := r.refusals()
	for refusal, count := range n {
		if f := probe.Refusal(refusal); count > 0 && f.Privilege() {
			r.note(true, "%d connections were not asked: %v", count, f)
		}
	}
}

// refusals counts the selected connections by why they could not be asked.
func (r *run) refusals() (n [256]int) {
	for i := range r.snap.table.n {
		if row := r.snap.table.at(i); !row.skip {
			n[row.ask.refusal]++
		}
	}
	return n
}
