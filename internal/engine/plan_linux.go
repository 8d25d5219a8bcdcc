package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/release"
	"deadpeer/internal/verdict"
)

// Plan asks like Check and goes on until every dead connection has been silent
// for Rules.Silence, then decides which may be released. It ends nothing; Act
// does. Needs what Check needs.
func (e *Engine) Plan(ctx context.Context, req Request) (*Plan, error) {
	r, err := e.see(ctx, req)
	if err != nil {
		return nil, err
	}
	p := &Plan{Snapshot: r.snap, close: r.close, via: req.Via, diag: map[uint32]release.Destroyer{}, bpf: map[uint32]release.Ender{}}
	for n, s := range r.spaces {
		p.diag[n] = s.diag
		if e.mayUseBPF() {
			p.bpf[n] = ender{s.ns, &p.byBPF}
		}
	}
	err = r.ask(ctx, r.req.Rules.Silence, func(q *inquiry) error { return p.decide(ctx, q) })
	if !r.snap.Asked { // nor could it be
		return nil, errors.Join(err, p.Close())
	}
	if err == nil && req.EvenAlive {
		p.addNamed(r)
	}
	if err == nil {
		err = r.tie(ctx)
	}
	r.finish()
	if err != nil {
		return p, errors.Join(err, p.Close())
	}
	return p, nil
}

// Close releases what the plan holds open.
func (p *Plan) Close() error {
	if p.close != nil {
		p.close()
		p.close = nil
	}
	return nil
}

// decide holds every selected connection to the rules of release.
func (p *Plan) decide(ctx context.Context, q *inquiry) error {
	same := q.steady()
	holds, err := q.holds(ctx, true)
	if err != nil {
		return err
	}
	for g, h := range holds {
		switch {
		case h == "":
		case q.req.DespiteOutage:
			q.note(false, "releasing although %s", h)
			holds[g] = ""
		default:
			p.Held = append(p.Held, h)
		}
	}
	if n := q.refusals()[probe.NoRoute]; n > 0 {
		p.Held = append(p.Held, fmt.Sprintf("no route leads to the peers of %s: our own side may be what is gone", count(n, "connection")))
	}
	for i := range q.snap.table.n {
		row := q.snap.table.at(i)
		if !q.selected(row) || q.req.EvenAlive && q.req.Filter.Names(row.sock.Cookie) {
			continue
		}
		a := q.about(row)
		c := release.Candidate{
			Verdict: a.verdict, Why: a.why, Protected: a.protection.String(),
			Named: q.req.Filter.Names(row.sock.Cookie),
		}
		if a.verdict == conn.Dead && a.unanswered > 0 {
			c.Silence, c.Held = (a.judged - a.first).span(), holds[a.group]
		}
		ok, why := release.Decide(c, q.req.Rules)
		if ok && a.refusal != probe.NotRefused {
			ok, why = false, "its last question could not be asked: "+a.refusal.Error()
		}
		switch {
		case ok:
			p.add(planned{
				row: i, item: release.Item{Sock: row.sock, SegsIn: a.base, Since: q.epoch.Add(a.first.span())},
				last: q.epoch.Add(q.closes(row).span()), same: same[a.group],
			})
		case a.verdict == conn.Dead && !a.is(ended): // one that has ended needs no release
			q.snap.outcomes[i] = Outcome{Action: actionRelease, Error: why}
		}
	}
	return nil
}

// steady gives for every path what tells later whether it is as it is now.
func (q *inquiry) steady() []func() string {
	asleep := suspended()
	list := make([]func() string, len(q.groups))
	for g := range list {
		paths, hop := q.groups[g].space.paths, q.groups[g].hop
		generation := paths.Generation(hop)
		list[g] = func() string {
			switch {
			case suspended()-asleep > gapLimit:
				return "this host was suspended"
			case paths.Generation(hop) != generation:
				return "the path to the peer has changed"
			}
			return ""
		}
	}
	return list
}

func (p *Plan) add(item planned) {
	p.items = append(p.items, item)
	p.Snapshot.outcomes[item.row] = Outcome{Action: actionRelease}
}

// addNamed adds the connections that the filter names by cookie.
func (p *Plan) addNamed(r *run) {
	for i := range p.Snapshot.table.n {
		if row := p.Snapshot.table.at(i); r.selected(row) && r.req.Filter.Names(row.sock.Cookie) {
			p.add(planned{row: i, item: release.Item{Sock: row.sock, Any: true}})
		}
	}
}

// holds asks of every path with a dead peer whether our own side is what is
// gone, and gives the reason to hold its releases, or "". With confirm a
// gateway that has not been heard of lately is asked, too.
func (q *inquiry) holds(ctx context.Context, confirm bool) ([]string, error) {
	type tally map[netip.Addr]bool // peer: nothing but dead
	tallies := make([]tally, len(q.groups))
	dead := make([]bool, len(q.groups))
	for i := range q.snap.table.n {
		row := q.snap.table.at(i)
		a := q.about(row)
		if row.skip || a.questions == 0 {
			continue
		}
		t := tallies[a.group]
		if t == nil {
			t = tally{}
			tallies[a.group] = t
		}
		peer := row.sock.Peer().Addr().Unmap()
		silent := a.verdict == conn.Dead && !a.is(ended)
		if only, seen := t[peer]; !seen || only {
			t[peer] = silent
		}
		dead[a.group] = dead[a.group] || silent
	}
	holds := make([]string, len(q.groups))
	for g := range q.groups {
		if !dead[g] {
			continue
		}
		paths, hop := q.groups[g].space.paths, q.groups[g].hop
		health := paths.Health(hop)
		if confirm {
			var err error
			if health, err = paths.Confirm(ctx, hop); ctx.Err() != nil {
				return nil, err
			} else if err != nil {
				q.note(true, "the next hop could not be asked: %v", err)
			}
		}
		state := release.PathState{Name: health.Interface, Gone: health.Reason(), Asked: len(tallies[g])}
		for _, only := range tallies[g] {
			if only {
				state.Dead++
			}
		}
		holds[g] = state.Hold()
	}
	return holds, nil
}

// Act ends what was planned: the connections with a database session through
// their database, as Request.Via says, the others by their socket. Each
// connection's evidence is read again, by BPF under the socket's lock, else at
// most 5 ms before, and whoever has heard anything is left alone; so is one
// whose last question is more than 20 s old, or whose path has changed since.
// Outcomes are in Snapshot afterwards. Needs CAP_NET_ADMIN. An interrupted Act
// has tried some and says so of the others.
func (p *Plan) Act(ctx context.Context) error {
	left := p.endSessions(ctx)
	start, ended := time.Now(), 0
	bySpace := map[uint32][]planned{}
	for _, item := range left {
		if err := item.stale(); err != nil {
			p.settle(item.row, "", err)
			continue
		}
		n := item.item.Sock.NetNS
		bySpace[n] = append(bySpace[n], item)
	}
	for n, list := range bySpace {
		items := make([]release.Item, len(list))
		for k := range list {
			items[k] = list[k].item
		}
		release.Act(ctx, p.diag[n], p.bpf[n], items, func(k int, err error) {
			p.settle(list[k].row, p.viaSocket(), err)
			if err == nil {
				ended++
			}
		})
	}
	if ended > 0 {
		p.Snapshot.How = append(p.Snapshot.How, fmt.Sprintf("ended %s, %d of them by BPF, in %s",
			count(ended, "connection"), p.byBPF, verdict.Duration(time.Since(start))))
	}
	p.verifySessions(ctx, left)
	p.items = nil
	return ctx.Err()
}
