package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// Detach gives the sockets of the file their own values back, reads them
// again, and drops them from the file. What a program has changed itself
// meanwhile stays. A socket that a newer attachment has is left to that one.
// A target that the file does not have is not reported.
func (r *Run) Detach(ctx context.Context, targets []Held, report func(i int, rep Report)) error {
	var which []int
	var passed []conn.ID
	for i, t := range targets {
		if _, ok := r.File.Socket(t.ID); !ok {
			continue
		}
		if n := r.newer(t.ID); n != nil {
			passed = append(passed, t.ID)
			report(i, Report{Passed: true, Why: "attachment " + n.ID + " has it now"})
			continue
		}
		which = append(which, i)
	}
	if err := r.File.Forget(passed); err != nil {
		return err
	}
	for len(which) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, n := time.Now(), min(r.batch(), len(which))
		if err := r.detachBatch(ctx, targets, which[:n], report); err != nil {
			return err
		}
		which = which[n:]
		r.pace(start, n)
	}
	return nil
}

// Undo is Detach for an Attach that did not come to its end: what older
// attachments have stays theirs.
func (r *Run) Undo(ctx context.Context, targets []Held, report func(i int, rep Report)) error {
	u := *r
	u.onlyThis = true
	return u.Detach(ctx, targets, report)
}

// Held is a socket of an attachment, and what it was seen to have, if Known.
type Held struct {
	Target
	Now   keepalive.Settings
	Known bool
}

func (r *Run) ended(id conn.ID, err error) bool { return errors.Is(err, ErrGone) && r.Ended(id) }

func (r *Run) newer(id conn.ID) *journal.Attachment {
	for _, o := range r.Newer {
		if _, ok := o.Socket(id); ok {
			return o
		}
	}
	return nil
}

func (r *Run) older(id conn.ID) bool {
	return slices.ContainsFunc(r.Older, func(o *journal.Attachment) bool {
		_, ok := o.Socket(id)
		return ok
	})
}

// undo is what is given back to one socket of a batch.
type undo struct {
	target int
	record journal.Attached // Was: what it is to have
	want   keepalive.Settings
	has    keepalive.Settings
	notes  []string
	back   []keepalive.Part
	err    error
	ended  bool // err says that it is gone, and it is for good
}

func (r *Run) detachBatch(ctx context.Context, targets []Held, which []int, report func(int, Report)) error {
	ctx = context.WithoutCancel(ctx) // a batch begun is ended
	var batch []undo
	var ended []conn.ID
	var unknown []int
	var look []Target
	found := func(i int, now keepalive.Settings) {
		a, _ := r.File.Socket(targets[i].ID)
		if r.onlyThis && r.older(a.ID) {
			a.Was = a.Found
		}
		batch = append(batch, plan(i, a, now))
	}
	for _, i := range which {
		if targets[i].Known {
			found(i, targets[i].Now)
		} else {
			unknown, look = append(unknown, i), append(look, targets[i].Target)
		}
	}
	r.Transport.Look(ctx, look, func(n int, now keepalive.Settings, err error) {
		switch i := unknown[n]; {
		case r.ended(look[n].ID, err):
			ended = append(ended, look[n].ID)
			report(i, Report{Done: true, Ended: true})
		case err != nil:
			report(i, Report{Why: err.Error()})
		default:
			found(i, now)
		}
	})
	records, changes := make([]journal.Attached, len(batch)), make([]Change, len(batch))
	for n, u := range batch {
		records[n] = u.record
		changes[n] = Change{Target: targets[u.target].Target, Settings: u.want, Conditional: targets[u.target].Known, Was: u.has}
	}
	// From here on a killed run is finished by the next, whatever it finds.
	if err := r.File.Add(records); err != nil {
		return err
	}
	r.step(StepUndoing)
	r.Transport.Restore(ctx, changes, func(n int, err error) {
		batch[n].err, batch[n].ended = err, r.ended(batch[n].record.ID, err)
	})
	r.step(StepRestored)
	done := ended
	var again []int
	for _, u := range batch {
		switch {
		case u.err == nil, u.ended:
			done = append(done, u.record.ID)
		case errors.Is(u.err, ErrDiffers):
			targets[u.target].Known = false
			again = append(again, u.target)
		}
	}
	files := []*journal.Attachment{r.File}
	if !r.onlyThis {
		files = append(files, r.Older...)
	}
	for _, f := range files {
		if err := f.Forget(heldBy(f, done)); err != nil {
			return err
		}
	}
	r.step(StepForgotten)
	for _, u := range batch {
		switch {
		case u.ended:
			report(u.target, Report{Done: true, Ended: true})
		case errors.Is(u.err, ErrDiffers):
		case u.err != nil:
			report(u.target, Report{Why: u.err.Error()})
		default:
			report(u.target, Report{Done: true, Why: strings.Join(u.notes, "; "), Back: u.back, Now: u.want, Known: true})
		}
	}
	if len(again) > 0 {
		return r.detachBatch(ctx, targets, again, report) // what they have is not known now
	}
	return nil
}

// plan says what a socket is to have, from what it has now.
func plan(target int, a journal.Attached, has keepalive.Settings) undo {
	now := valuesOf(has)
	was, notes := wanted(a, now)
	u := undo{target: target, record: a, has: has, notes: notes}
	u.record.Was = was
	for _, p := range parts(&was, &now) {
		if *p.a == *p.b {
			continue
		}
		if p.part != keepalive.PartUserTimeout {
			u.back = append(u.back, p.part)
		}
		if near := min(max(*p.a, p.least), p.most); near != *p.a {
			u.notes = append(u.notes, fmt.Sprintf("%s is beyond what a socket can be told: it has %s", text(p.part, *p.a), text(p.part, near)))
			*p.a = near
		}
	}
	u.want = settingsOf(was)
	return u
}

// wanted is what a socket of an attachment is to have, from what it has now,
// and what is left because its program has changed it.
func wanted(a journal.Attached, now journal.Values) (was journal.Values, notes []string) {
	was = a.Was
	if a.Applied && now.KeepAlive != a.Set.KeepAlive && now.KeepAlive != a.Found.KeepAlive {
		if was.KeepAlive != now.KeepAlive {
			notes = append(notes, "keepalive left off: its program has changed it")
		}
		was.KeepAlive = now.KeepAlive
	}
	set, found := parts(&a.Set, &now), parts(&a.Found, &was)
	for n, p := range set {
		if *p.a == *p.b || *found[n].a == *p.b || *found[n].b == *p.b {
			continue
		}
		notes = append(notes, text(p.part, *p.b)+" left: its program has changed it")
		*found[n].b = *p.b
	}
	return was, notes
}

// pair is one part of two sets of values.
type pair struct {
	part        keepalive.Part
	a, b        *int32
	least, most int32 // that can be set
}

func parts(a, b *journal.Values) [4]pair {
	return [...]pair{
		{keepalive.PartIdle, &a.Idle, &b.Idle, 1, int32(longest / time.Second)},
		{keepalive.PartInterval, &a.Interval, &b.Interval, 1, int32(longest / time.Second)},
		{keepalive.PartProbes, &a.Probes, &b.Probes, 1, maxProbes},
		{keepalive.PartUserTimeout, &a.UserTimeout, &b.UserTimeout, 0, 1<<31 - 1},
	}
}

// notRestoredError says that a socket does not have what it was given.
type notRestoredError struct{ has, given keepalive.Settings }

// Error says both.
func (e *notRestoredError) Error() string {
	return fmt.Sprintf("it reads %s, not %s", describe(e.has), describe(e.given))
}

func describe(s keepalive.Settings) string {
	text := "off"
	if s.KeepAlive {
		text = "on"
	}
	return fmt.Sprintf("keepalive %s, idle %v, interval %v, probes %d, user timeout %v", text, s.Idle, s.Interval, s.Probes, s.UserTimeout)
}
