package engine

import (
	"context"
	"errors"
	"math"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/verdict"
)

// sweep reads every connection with an open question again and books the
// answers. A few are looked up by cookie, many are listed.
func (q *inquiry) sweep(ctx context.Context) error {
	var open []uint32
	add := func(i uint32) {
		if q.snap.table.at(i).ask.is(outstanding) {
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
	if len(open) == 0 {
		return nil
	}
	var lost []uint32
	var err error
	if len(open) <= fewRows {
		lost, err = q.lookUp(open)
	} else {
		lost, err = q.list(ctx, open)
	}
	if err != nil {
		return err
	}
	for _, i := range lost {
		row := q.snap.table.at(i)
		row.ask.clear(outstanding)
		row.ask.set(ended)
		target := probe.Target{ID: row.sock.ID(), State: row.sock.State, Owners: q.snap.ownersOf(row)}
		if segsIn, closed := q.askers[0].Ended(target); !closed {
			row.ask.set(vanished)
		} else if segsIn == row.ask.base {
			row.ask.set(gaveUp)
		}
	}
	return nil
}

func (q *inquiry) lookUp(open []uint32) (lost []uint32, err error) {
	bySpace := map[uint32][]uint32{}
	for _, i := range open {
		n := q.snap.table.at(i).sock.NetNS
		bySpace[n] = append(bySpace[n], i)
	}
	for n, rows := range bySpace {
		fresh := make([]conn.Sock, len(rows))
		socks := make([]*conn.Sock, len(rows))
		for k, i := range rows {
			fresh[k] = q.snap.table.at(i).sock
			socks[k] = &fresh[k]
		}
		lookErr := q.spaces[n].diag.Lookup(socks, func(k int, err error) {
			switch {
			case err == nil:
				q.reread(rows[k], &fresh[k])
			case errors.Is(err, sockdiag.ErrGone):
				lost = append(lost, rows[k])
			}
			// Any other error leaves the question open until the next sweep.
		})
		if lookErr != nil {
			return nil, lookErr
		}
	}
	return lost, nil
}

func (q *inquiry) list(ctx context.Context, open []uint32) (lost []uint32, err error) {
	for {
		if q.sweeps++; q.sweeps != 0 {
			break
		}
	}
	for _, s := range q.spaces {
		query := sockdiag.Query{States: conn.Connections, Filter: q.req.Filter.Kernel(conn.KernelSupport{})}
		err := s.diag.Dump(ctx, query, func(fresh *conn.Sock, _ *sockdiag.Memory) error {
			if i, ok := q.find(fresh.ID()); ok {
				row := q.snap.table.at(i)
				row.ask.sweep = q.sweeps
				if row.ask.is(outstanding) {
					q.reread(i, fresh)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, i := range open {
		if row := q.snap.table.at(i); row.ask.sweep != q.sweeps {
			lost = append(lost, i)
		}
	}
	// A dump may miss a socket while others come and go: ask for it by name.
	if len(lost) > 0 {
		return q.lookUp(lost)
	}
	return nil, nil
}

// reread compares a connection with an open question to what the kernel says
// of it now.
func (q *inquiry) reread(i uint32, fresh *conn.Sock) {
	row := q.snap.table.at(i)
	if fresh.State != row.sock.State {
		row.sock.State, row.sock.Inode = fresh.State, fresh.Inode
	}
	if row.ask.refusal != probe.NotRefused { // looked at for its state only
		row.ask.clear(outstanding)
		return
	}
	if fresh.SegsIn == row.ask.base {
		if verdict.Transient(fresh.State) && !row.ask.is(counted) {
			row.ask.clear(outstanding)
			row.ask.set(settled)
		}
		return
	}
	// The answer is at most as old as the question and, to the jiffy, as
	// old as the kernel says: whichever is less.
	took := q.now() - row.ask.last
	age := time.Duration(min(fresh.LastAckRecv, fresh.LastDataRecv)) * time.Millisecond
	if byKernel := int64(took) - int64(stampOf(age)); age > 4*time.Millisecond && byKernel >= 0 && byKernel < math.MaxUint32 {
		took = stamp(byKernel)
	}
	q.heard(i, row, took)
}
