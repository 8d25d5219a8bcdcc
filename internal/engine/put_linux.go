package engine

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/internal/probe"
	"deadpeer/internal/verdict"
)

// dueAt is when the next question to the row may be put.
func (q *inquiry) dueAt(row *row) stamp {
	a := q.about(row)
	if a.questions == 0 && a.refusal == probe.NotRefused {
		return 0
	}
	wait := stampOf(verdict.Wait(&row.sock))
	next := a.last + wait
	if a.verdict != conn.Dead {
		return next
	}
	later := a.last + max(wait, stampOf(min(deadEvery, q.hold/4)))
	if final := a.first + stampOf(q.hold) - wait; next <= final && final < later {
		return final // so that the silence is long enough when it closes
	}
	return later
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
		a := q.about(row)
		if now >= q.dueAt(row) {
			if a.questions > 0 && a.unanswered == 0 {
				if ok, err := q.reroute(row); err != nil {
					return nil, err
				} else if !ok {
					continue
				}
			}
			due = append(due, i)
		}
		if a.verdict != conn.Dead {
			silent[a.group] = true
		}
	}
	for g := range q.groups {
		if !silent[uint16(g)] {
			continue
		}
		for _, i := range q.groups[g].controls {
			row := q.snap.table.at(i)
			if a := q.about(row); !a.is(outstanding) && !a.is(ended) && q.expired(row, now) {
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
			firstOnes = firstOnes || q.about(q.snap.table.at(i)).questions == 0
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
	a := q.about(row)
	silence := verdict.MinSilence
	if a.verdict == conn.Dead {
		silence = q.hold
	}
	return a.is(outstanding) && a.unanswered >= needed[a.group] && q.expired(row, now) && (now-a.first).span() >= silence
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
	for n, a := range q.askers {
		if len(rows) <= batchLen && a != q.askers[0] {
			break
		}
		wg.Go(func() {
			targets, results := q.batches[n].targets[:], q.batches[n].results[:]
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
						ID: row.sock.ID(), State: row.sock.State, Owners: q.snap.ownersOf(row), Learn: q.lacksSettings(row), Reuses: q.about(row).is(reuses),
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
	a := q.about(row)
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
	if r.Method == probe.Keepalive && r.Refusal == probe.NotRefused && !r.Ended && r.Settings.KeepAlive {
		q.byTimer[i] = struct{}{}
	}
	switch {
	case r.Ended:
		a.set(ended)
		if r.Orderly {
			a.set(vanished)
		} else if r.SegsIn == a.base {
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
	a := q.about(row)
	f := &q.snap.fails[a.group]
	now := q.now()
	a.clear(outstanding)
	delete(q.byTimer, i)
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
