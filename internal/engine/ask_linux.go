package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/journal"
	"deadpeer/internal/path"
	"deadpeer/internal/probe"
	"deadpeer/internal/verdict"
)

const (
	batchLen    = 128  // questions put under one journal write
	maxControls = 256  // living connections asked again, per path
	lookUpLen   = 512  // sockets are looked up together
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

// batch is memory for the questions an asker puts together.
type batch struct {
	targets [batchLen]probe.Target
	results [batchLen]probe.Result
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
	batches   [askers]batch
	groups    []group
	groupOf   map[groupKey]uint16
	pending   []uint32
	open      []uint32 // this and what follows: memory of sweep and due, to use again
	dueRows   []uint32
	looked    []uint32
	fresh     []conn.Sock
	socks     []*conn.Sock
	watch     *watch
	sweeps    uint8
	swept     stamp // when the last sweep began
	sweepCost time.Duration
	asked     int
	byTimer   map[uint32]struct{} // rows whose last questions their keepalive timer put, and counts until one is answered
	dead      int                 // of those that are settled
	suspect   int                 // likewise, since they cannot be asked further
	last      bool                // the last questions are out
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
	switch {
	case !r.snap.Asked: // nor could it be
		return nil, err
	case err == nil:
		err = r.tie(ctx)
	}
	r.readSettings(ctx) // of those that were not asked, for their forecasts
	r.finish()
	return r.snap, err
}

// ask puts questions until every selected connection has its verdict, or the
// time is up. A peer proven dead goes on being asked until it has been silent
// for hold. then, when not nil, is called while the journal and the watch are
// still open.
func (r *run) ask(ctx context.Context, hold time.Duration, then func(*inquiry) error) (err error) {
	if hold > MaxAsking || r.req.Timeout > MaxAsking-hold {
		return fmt.Errorf("ask for %s and %s: longer than %s", hold, r.req.Timeout, MaxAsking)
	}
	defer held.Spare(askers)()
	r.e.asking.Lock()
	defer r.e.asking.Unlock()
	if n, err := r.e.recover(ctx); err != nil {
		r.note(true, "a killed deadpeer left settings that could not be put back: %v", err)
	} else if n > 0 {
		r.note(false, "put back %s that a killed deadpeer had left changed", count(n, "setting"))
	}
	q := &inquiry{run: r, hold: hold, groupOf: map[groupKey]uint16{}, byTimer: map[uint32]struct{}{}}
	if q.journal, err = journal.Open(r.e.options.RuntimeDir, journal.Options{}); err != nil {
		return err
	}
	r.snap.table.startAsking()
	r.snap.Asked = true
	defer func() {
		for _, a := range q.askers {
			if a != nil {
				err = errors.Join(err, a.Close())
			}
		}
		if n := q.journal.Outstanding(); n > 0 {
			left := fmt.Errorf("settings of %s could not be put back: deadpeer doctor --clean tries again", count(n, "connection"))
			if r.note(false, "%v", left); err != nil {
				err = errors.Join(err, left)
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
	q.countProbes()
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
		a := q.about(row)
		if row.reuses {
			a.set(reuses)
		}
		a.protection = guard.of(row)
		if q.req.Filter.Names(s.Cookie) {
			a.protection = unprotected
		}
		if !q.mayAsk(row) {
			q.judge(row, 0)
			a.set(settled)
			continue
		}
		route, err := q.route(row)
		switch {
		case err != nil:
			return err
		case route.Local && !q.req.Filter.Names(s.Cookie):
			a.protection = bothEndsHere
		case route.Missing:
			a.refusal = probe.NoRoute
		}
		if a.protection != unprotected || a.refusal != probe.NotRefused {
			q.judge(row, 0)
			a.set(settled)
			continue
		}
		if a.group, err = q.group(s.NetNS, route.Hop); err != nil {
			return err
		}
		q.pending = append(q.pending, i)
	}
	q.epoch = time.Now()
	return nil
}

func (q *inquiry) route(row *row) (path.Route, error) {
	s := &row.sock
	from := path.RouteKey{Local: s.Local().Addr().Unmap(), Interface: s.Interface, Mark: s.Mark, UID: s.UID}
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
	a := q.about(row)
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
	s, a := &row.sock, q.about(row)
	switch {
	case a.protection != unprotected:
		return false
	case s.MPTCP:
		a.refusal = probe.MPTCPSocket
	case s.State == conn.CloseWait && verdict.Glance(q.snap.evidence(row), q.req.Rules).Verdict == conn.Leaked:
		return false // its peer closed long ago: a question could only draw a RST
	case verdict.Transient(s.State) || !conn.Connections.Has(s.State):
		return false
	case row.ownerN == 0 && q.mayHide(row):
		a.refusal = probe.Hidden
	case row.ownerN == 0:
		a.refusal = probe.NoOwner
	}
	return a.refusal == probe.NotRefused
}

// about is what asking the row has brought.
func (q *inquiry) about(row *row) *asking { return q.snap.table.asking(row) }

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
		late := start.After(deadline)
		if q.hold > 0 {
			q.conclude(swept, late)
		}
		q.sweepCost = time.Since(start)
		q.progress()
		if len(q.pending) == 0 || late && q.hold == 0 {
			break
		}
		if !q.last {
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
		if q.about(row).is(outstanding) {
			out++
			young = young || q.young(row, now)
		}
		switch {
		case !q.last:
			next = min(next, q.dueAt(row))
		case q.about(row).is(outstanding):
			next = min(next, q.closes(row))
		}
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
	return (now - q.about(row).last).span() < eager+us(row.sock.RTTUS)
}

func (q *inquiry) progress() {
	if q.req.Progress == nil {
		return
	}
	p := Progress{Asked: q.asked, Elapsed: time.Since(q.epoch), Dead: q.dead, Silent: q.suspect, Expected: max(q.hold, verdict.MinSilence)}
	for _, i := range q.pending {
		if a := q.about(q.snap.table.at(i)); a.verdict == conn.Dead {
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

// countProbes notes that questions have brought connections nearer to their end.
func (q *inquiry) countProbes() {
	n := 0
	for i := range q.byTimer {
		if a := q.about(q.snap.table.at(i)); !a.is(ended) {
			n++
		}
	}
	if n > 0 {
		q.note(false, "unanswered questions to %s count as keepalive probes: the kernel gives up sooner where the peer is gone", count(n, "connection"))
	}
}

// refusals counts the selected connections by why they could not be asked.
func (r *run) refusals() (n [256]int) {
	for i := range r.snap.table.n {
		if row := r.snap.table.at(i); !row.skip {
			n[r.snap.table.asking(row).refusal]++
		}
	}
	return n
}
