package engine

import (
	"math"
	"slices"

	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/verdict"
)

// judgeAll judges every pending row by a sweep that began at the given time,
// and keeps pending those that need more questions.
func (q *inquiry) judgeAll(swept stamp) {
	generations := q.generations()
	left := q.pending[:0]
	for _, i := range q.pending {
		row := q.snap.table.at(i)
		a := q.about(row)
		if a.unanswered > 0 && a.generation != generations[a.group] {
			// Spoilt: whatever went unanswered may have had another cause.
			a.unanswered = 0
			a.clear(outstanding)
		}
		if a.refusal == probe.OwnerGone || a.refusal == probe.Reused {
			a.unanswered = 0 // nobody was asked to the end
			a.set(settled)
		}
		q.judge(row, swept)
		switch {
		case verdict.Transient(row.sock.State):
			a.set(settled)
		case a.is(ended), a.verdict == conn.Alive, a.verdict == conn.Stuck, a.is(answered) && a.unanswered == 0:
			a.set(settled)
		case q.hold == 0 && a.verdict == conn.Dead:
			a.set(settled)
		case a.questions == 0 && a.refusal.Passing() && swept.span() > patience,
			a.refusal == probe.NoRoute && a.last > a.first+stampOf(patience):
			a.set(settled)
		}
		if !a.is(settled) {
			left = append(left, i)
			continue
		}
		switch a.verdict {
		case conn.Dead:
			q.dead++
		case conn.Suspect:
			q.suspect++
		}
		if a.is(answered) && !a.is(ended) && row.sock.State == conn.Established {
			a.set(counted)
		}
	}
	q.pending = left
}

// conclude ends the asking when all who are left have been silent for long
// enough. Until then even they are asked, lest one be ended on a silence that
// is over by now; and the last questions get their time to be answered.
func (q *inquiry) conclude(swept stamp, late bool) {
	if late {
		q.pending = slices.DeleteFunc(q.pending, func(i uint32) bool { return !q.silentEnough(i, swept) })
	}
	overdue, open := false, false
	for _, i := range q.pending {
		row := q.snap.table.at(i)
		if !q.silentEnough(i, swept) {
			q.last = false
			return
		}
		overdue = overdue || swept >= q.dueAt(row)
		open = open || q.about(row).is(outstanding) && !q.expired(row, swept)
	}
	if q.last = q.last || late || !overdue; !q.last || open {
		return
	}
	for _, i := range q.pending {
		q.about(q.snap.table.at(i)).set(settled)
	}
	q.dead += len(q.pending)
	q.pending = q.pending[:0]
}

// silentEnough reports whether row i is dead, has been silent for as long as a
// release takes, and could be asked to the last.
func (q *inquiry) silentEnough(i uint32, swept stamp) bool {
	a := q.about(q.snap.table.at(i))
	return a.verdict == conn.Dead && a.refusal == probe.NotRefused && (swept-a.first).span() >= q.hold
}

// closes is when the last question to the row counts as unanswered.
func (q *inquiry) closes(row *row) stamp {
	return q.about(row).last + stampOf(verdict.Wait(&row.sock))
}

func (q *inquiry) expired(row *row, swept stamp) bool { return swept >= q.closes(row) }

// judge gives the row its verdict as of the given time.
func (q *inquiry) judge(row *row, at stamp) {
	a := q.about(row)
	a.judged = at
	j := verdict.Judge(q.snap.evidence(row), q.req.Rules)
	a.verdict, a.why = j.Verdict, j.Why
	if a.chance = 0; !math.IsNaN(j.FalseChance) {
		a.chance = max(float32(j.FalseChance), math.SmallestNonzeroFloat32)
	}
}
