package engine

import (
	"context"
	"errors"
	"math"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/verdict"
)

// sweep reads connections with an open question again and books the answers.
// A few are looked up by cookie, many are listed.
func (q *inquiry) sweep(ctx context.Context, now stamp) error {
	open := q.open[:0]
	defer func() { q.open = open[:0] }()
	add := func(i uint32) {
		if q.about(q.snap.table.at(i)).is(outstanding) {
			open = append(open, i)
		}
	}
	for _, i := range q.pending {
		add(i)
	}
	for g := range q.groups {
		for _, i := range q.groups[g].controls {
			add(i)
		}
	}
	if len(open) > fewRows {
		open = q.worthReading(open, now)
	}
	q.swept = now
	if len(open) == 0 {
		return nil
	}
	var lost []uint32
	var err error
	const lookUpCost = 3 // times that of listing one
	if len(open) <= fewRows || len(open) < int(q.snap.table.n)/lookUpCost {
		lost, err = q.lookUp(open)
	} else {
		lost, err = q.listOpen(ctx, open)
	}
	if err != nil {
		return err
	}
	for _, i := range lost {
		row := q.snap.table.at(i)
		a := q.about(row)
		a.clear(outstanding)
		a.set(ended)
		target := probe.Target{ID: row.sock.ID(), State: row.sock.State, Owners: q.snap.ownersOf(row)}
		if segsIn, closed := q.askers[0].Ended(target); !closed {
			a.set(vanished)
		} else if segsIn == a.base {
			a.set(gaveUp)
		}
	}
	return nil
}

// worthReading leaves of many open connections those of which reading tells
// more than the next question will, which reads them too: the ones asked for
// the first time, of which most may have answered, the controls, those whose
// verdict is due, and those that could not be asked to the end.
func (q *inquiry) worthReading(open []uint32, now stamp) []uint32 {
	needed := q.needed()
	left := open[:0]
	for _, i := range open {
		row := q.snap.table.at(i)
		a := q.about(row)
		if a.is(counted) || a.refusal != probe.NotRefused || a.questions == 1 && (a.last >= q.swept || q.young(row, now)) || q.ripe(row, needed, now) {
			left = append(left, i)
		}
	}
	return left
}

func (q *inquiry) lookUp(open []uint32) (lost []uint32, err error) {
	for n, space := range q.spaces {
		rows := q.looked[:0]
		for at, i := range open {
			if q.snap.table.at(i).sock.NetNS == n {
				rows = append(rows, i)
			}
			if len(rows) == lookUpLen || len(rows) > 0 && at == len(open)-1 {
				if lost, err = q.lookUpBatch(space, rows, lost); err != nil {
					return nil, err
				}
				rows = rows[:0]
			}
		}
		q.looked = rows
	}
	return lost, nil
}

// lookUpBatch looks up rows of one namespace, and appends to lost those whose
// socket is gone.
func (q *inquiry) lookUpBatch(s *space, rows, lost []uint32) ([]uint32, error) {
	q.fresh, q.socks = q.fresh[:0], q.socks[:0]
	for _, i := range rows {
		q.fresh = append(q.fresh, q.snap.table.at(i).sock)
	}
	for k := range q.fresh {
		q.socks = append(q.socks, &q.fresh[k])
	}
	err := s.diag.Lookup(q.socks, func(k int, err error) {
		switch {
		case err == nil:
			q.reread(rows[k], &q.fresh[k])
		case errors.Is(err, sockdiag.ErrGone):
			lost = append(lost, rows[k])
		}
		// Any other error leaves the question open until the next sweep.
	})
	return lost, err
}

func (q *inquiry) listOpen(ctx context.Context, open []uint32) (lost []uint32, err error) {
	if q.sweeps++; q.sweeps == 0 { // which rows have that no sweep has seen
		q.sweeps++
	}
	for _, s := range q.spaces {
		if err := q.listAgain(ctx, s, func(fresh *conn.Sock) {
			if i, ok := q.find(fresh.ID()); ok {
				a := q.about(q.snap.table.at(i))
				a.sweep = q.sweeps
				if a.is(outstanding) {
					q.reread(i, fresh)
				}
			}
		}); err != nil {
			return nil, err
		}
	}
	for _, i := range open {
		if q.about(q.snap.table.at(i)).sweep != q.sweeps {
			lost = append(lost, i)
		}
	}
	// A list may miss a socket while others come and go: ask for it by name.
	if len(lost) > 0 {
		return q.lookUp(lost)
	}
	return nil, nil
}

// listAgain visits at least what the filter may match, once or more.
func (q *inquiry) listAgain(ctx context.Context, s *space, visit func(*conn.Sock)) error {
	if q.listsByBPF() {
		err := q.sockets.Connections(ctx, s.ns, nil, func(c *bpf.Record) error {
			visit(&c.Sock)
			return nil
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		q.unlisted = err
	}
	query := sockdiag.Query{States: conn.Connections, Filter: q.req.Filter.Kernel(conn.KernelSupport{})}
	return s.diag.Dump(ctx, query, func(fresh *conn.Sock, _ *sockdiag.Memory) error {
		visit(fresh)
		return nil
	})
}

// unanswered closes the last question to the row.
func (q *inquiry) unanswered(row *row) {
	a := q.about(row)
	if a.clear(outstanding); a.is(counted) {
		q.snap.fails[a.group].Questions++
		q.snap.fails[a.group].Unanswered++
	}
}

// reread compares a connection with an open question to what the kernel says
// of it now.
func (q *inquiry) reread(i uint32, fresh *conn.Sock) {
	row := q.snap.table.at(i)
	a := q.about(row)
	if fresh.State != row.sock.State {
		row.sock.State, row.sock.Inode = fresh.State, fresh.Inode
	}
	if a.refusal != probe.NotRefused { // looked at for its state only
		a.clear(outstanding)
		return
	}
	if fresh.SegsIn == a.base {
		if q.expired(row, q.swept) {
			q.unanswered(row)
		}
		if verdict.Transient(fresh.State) && !a.is(counted) {
			a.clear(outstanding)
			a.set(settled)
		}
		return
	}
	// The answer is at most as old as the question and, to the jiffy, as
	// old as the kernel says: whichever is less.
	took := q.now() - a.last
	age := ms(min(fresh.LastAckRecv, fresh.LastDataRecv))
	if byKernel := int64(took) - int64(stampOf(age)); age > 4*time.Millisecond && byKernel >= 0 && byKernel < math.MaxUint32 {
		took = stamp(byKernel)
	}
	q.heard(i, row, took)
}
