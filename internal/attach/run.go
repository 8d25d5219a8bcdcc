package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// Step names a point at which a kill -9 must lose nothing.
type Step string

// The steps, in the order they come for each batch.
const (
	StepJournalled Step = "journalled" // what the sockets had is on disk
	StepSet        Step = "set"        // they have the policy
	StepApplied    Step = "applied"    // the file knows
	StepUndoing    Step = "undoing"    // the file knows that they are to be put back
	StepRestored   Step = "restored"   // they have their own values
	StepForgotten  Step = "forgotten"  // the file knows
)

// Run attaches or detaches. One process per host does so at a time, and none
// asks meanwhile (journal.Lock).
type Run struct {
	Transport Transport
	File      *journal.Attachment
	Older     []*journal.Attachment // than File, the newest first: it owns the sockets it has
	Newer     []*journal.Attachment
	// Reread fills in what the kernel says of sockets now; of one that has
	// ended it leaves what was there. Not needed to detach.
	Reread func(ctx context.Context, socks []*conn.Sock) error
	Batch  int                // sockets changed under one write of the file (256)
	Rate   int                // sockets a second at most, 0 for no limit: each may send a probe
	Ended  func(conn.ID) bool // a socket that is not found has ended for good
	Step   func(Step)         // called at each step of a batch, for tests; may be nil

	onlyThis bool // detaching means: as it was before this attachment
}

// Report is what became of one socket.
type Report struct {
	Done   bool
	Ended  bool             // there was nothing to be done any more
	Passed bool             // detaching: a newer attachment has it, and has to give it back
	Why    string           // why not, or what was left out
	Detail string           // more of that, too long for a table
	Back   []keepalive.Part // detaching: what was put back by value
	Now    keepalive.Settings
	Known  bool // Now is what it has now
}

const (
	batchLen = 256             // by default
	patience = 3 * time.Second // with what is not safe to change just now
	retry    = 100 * time.Millisecond
)

// pending is an item that waits until it is safe.
type pending struct {
	item    int
	timeout bool // only the user timeout is missing
	why     string
}

// Attach puts each item's policy on it, and reports all of them unless ctx ends
// or the file cannot be written: then Undo it. A socket that an older
// attachment has is noted with what it had before that; TakeOver makes it this
// one's alone.
func (r *Run) Attach(ctx context.Context, items []Item, report func(i int, rep Report)) error {
	all := make([]int, len(items))
	for i := range all {
		all[i] = i
	}
	waiting, err := r.attachAll(ctx, items, all, report)
	for end := time.Now().Add(patience); err == nil && len(waiting) > 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
		waiting, err = r.again(ctx, items, waiting, report)
	}
	for _, p := range waiting {
		if p.timeout {
			report(p.item, Report{Done: true, Why: "without the user timeout: " + p.why})
		} else {
			report(p.item, Report{Why: p.why})
		}
	}
	return errors.Join(err, ctx.Err())
}

// TakeOver drops the sockets of the file from the older attachments. Until
// then Undo can leave them to those.
func (r *Run) TakeOver() error {
	ids := idsOf(r.File.Sockets())
	for _, o := range r.Older {
		if err := o.Forget(heldBy(o, ids)); err != nil {
			return err
		}
	}
	return nil
}

// again looks whether what was waited for has come.
func (r *Run) again(ctx context.Context, items []Item, waiting []pending, report func(int, Report)) (left []pending, err error) {
	socks := make([]*conn.Sock, len(waiting))
	for n, p := range waiting {
		socks[n] = &items[p.item].Sock
	}
	if err := r.Reread(ctx, socks); err != nil {
		return waiting, err
	}
	var whole, timeouts []int
	for _, p := range waiting {
		it := &items[p.item]
		p.why = Wait(&it.Sock, it.Policy)
		if p.timeout {
			p.why = TimeoutWait(&it.Sock, it.Policy)
		}
		switch {
		case p.why != "":
			left = append(left, p)
		case p.timeout:
			timeouts = append(timeouts, p.item)
		default:
			whole = append(whole, p.item)
		}
	}
	r.setTimeouts(ctx, items, timeouts, report)
	more, err := r.attachAll(ctx, items, whole, report)
	return append(left, more...), err
}

// setTimeouts adds the user timeout, which is in the file already.
func (r *Run) setTimeouts(ctx context.Context, items []Item, which []int, report func(int, Report)) {
	changes := make([]Change, len(which))
	for n, i := range which {
		changes[n] = Change{Target: items[i].Target}
		changes[n].Settings.UserTimeout = items[i].Policy.UserTimeout
	}
	r.Transport.Set(ctx, changes, func(n int, err error) {
		rep := Report{Done: true}
		if err != nil && !errors.Is(err, ErrGone) {
			rep.Why = "without the user timeout: " + err.Error()
		}
		report(which[n], rep)
	})
}

func (r *Run) attachAll(ctx context.Context, items []Item, which []int, report func(int, Report)) (waiting []pending, err error) {
	for len(which) > 0 {
		if err := ctx.Err(); err != nil {
			return waiting, err
		}
		start, n := time.Now(), min(r.batch(), len(which))
		more, err := r.attachBatch(ctx, items, which[:n], report)
		waiting = append(waiting, more...)
		if err != nil {
			return waiting, err
		}
		which = which[n:]
		r.pace(start, n)
	}
	return waiting, nil
}

func (r *Run) batch() int { return cmp.Or(r.Batch, batchLen) }

// pace keeps probes that many idle connections send at once from overflowing
// a queue on their way.
func (r *Run) pace(start time.Time, n int) {
	if r.Rate > 0 {
		time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / time.Duration(r.Rate))))
	}
}

// change is what is done to one socket of a batch.
type change struct {
	item    int
	record  journal.Attached
	policy  keepalive.Policy
	waiting string // why the user timeout is not set yet
	err     error
	ended   bool // err says that it is gone, and it is for good
}

func (r *Run) attachBatch(ctx context.Context, items []Item, which []int, report func(int, Report)) (waiting []pending, err error) {
	ctx = context.WithoutCancel(ctx) // a batch begun is ended
	batch, waiting := r.prepare(ctx, items, which, report)
	records, changes := make([]journal.Attached, len(batch)), make([]Change, len(batch))
	for n := range batch {
		records[n] = batch[n].record
		changes[n] = batch[n].wanted(&items[batch[n].item])
	}
	if err := r.File.Add(records); err != nil {
		return waiting, err
	}
	r.step(StepJournalled)
	r.Transport.Set(ctx, changes, func(n int, err error) {
		batch[n].err, batch[n].ended = err, r.ended(batch[n].record.ID, err)
	})
	r.step(StepSet)
	applied, untouched := make([]conn.ID, 0, len(batch)), []conn.ID{}
	var failed []change
	for n := range batch {
		switch c := &batch[n]; {
		case c.err == nil:
			applied = append(applied, c.record.ID)
		case errors.Is(c.err, ErrDiffers), c.ended:
			untouched = append(untouched, c.record.ID)
		default:
			failed = append(failed, *c)
		}
	}
	if err := errors.Join(r.File.Applied(applied), r.File.Forget(untouched)); err != nil {
		return waiting, err
	}
	r.step(StepApplied)
	for n := range batch {
		switch c := &batch[n]; {
		case errors.Is(c.err, ErrDiffers):
			items[c.item].Known = false
			waiting = append(waiting, pending{c.item, false, c.err.Error()})
		case c.ended:
			report(c.item, Report{Done: true, Ended: true})
		case c.err != nil: // below
		case c.waiting != "":
			waiting = append(waiting, pending{c.item, true, c.waiting})
		default:
			report(c.item, Report{Done: true, Now: settingsOf(c.record.Set), Known: true})
		}
	}
	return waiting, r.takeBack(ctx, items, failed, report)
}

// wanted is the change of an item.
func (c *change) wanted(it *Item) Change {
	return Change{
		Target: it.Target, Settings: keepalive.Settings{KeepAlive: true, Policy: c.policy},
		Conditional: it.Known, Was: settingsOf(c.record.Found),
	}
}

// prepare finds out what the sockets have, and leaves out what is not to be
// changed, or not now.
func (r *Run) prepare(ctx context.Context, items []Item, which []int, report func(int, Report)) (batch []change, waiting []pending) {
	batch = make([]change, 0, len(which))
	found := func(i int, found keepalive.Settings) {
		switch c, why, err := r.planned(&items[i], found); {
		case err != nil:
			rep := Report{Why: err.Error()}
			if unfit, ok := errors.AsType[*UnfitError](err); ok {
				rep.Detail = unfit.Err.Error()
			}
			report(i, rep)
		case why != "":
			waiting = append(waiting, pending{i, false, why})
		default:
			c.item = i
			batch = append(batch, c)
		}
	}
	var unknown []int
	var targets []Target
	for _, i := range which {
		if items[i].Known {
			found(i, items[i].Found)
		} else {
			unknown, targets = append(unknown, i), append(targets, items[i].Target)
		}
	}
	r.Transport.Look(ctx, targets, func(n int, s keepalive.Settings, err error) {
		switch i := unknown[n]; {
		case r.ended(targets[n].ID, err):
			report(i, Report{Done: true, Ended: true})
		case err != nil:
			report(i, Report{Why: err.Error()})
		default:
			found(i, s)
		}
	})
	return batch, waiting
}

// planned is what is to be done to an item that has the settings found, or why
// it has to wait.
func (r *Run) planned(it *Item, found keepalive.Settings) (c change, wait string, err error) {
	set, err := After(found, it.Policy)
	if err != nil {
		return c, "", err
	}
	if why := Wait(&it.Sock, it.Policy); why != "" {
		return c, why, nil
	}
	c = change{policy: it.Policy, waiting: TimeoutWait(&it.Sock, it.Policy)}
	if c.waiting != "" {
		c.policy.UserTimeout = -1
	}
	was := valuesOf(found)
	c.record = journal.Attached{ID: it.Target.ID, Rule: it.Rule, Was: r.before(it.Target.ID, was), Found: was, Set: valuesOf(set)}
	if len(it.Target.Owners) > 0 {
		c.record.Owner = it.Target.Owners[0]
	}
	return c, "", nil
}

// before is what the socket had before any attachment: what an older one
// found, but for what the program has changed since.
func (r *Run) before(id conn.ID, found journal.Values) journal.Values {
	for _, o := range r.Older {
		if a, ok := o.Socket(id); ok {
			was, _ := wanted(a, found)
			return was
		}
	}
	return found
}

// takeBack gives sockets on which the policy could not be set whole what they
// had.
func (r *Run) takeBack(ctx context.Context, items []Item, failed []change, report func(int, Report)) error {
	if len(failed) == 0 {
		return nil
	}
	changes := make([]Change, len(failed))
	for n, c := range failed {
		changes[n] = Change{Target: items[c.item].Target, Settings: settingsOf(c.record.Found)}
	}
	var ids []conn.ID
	r.Transport.Restore(ctx, changes, func(n int, err error) {
		c := failed[n]
		if err == nil || errors.Is(err, ErrGone) {
			ids = append(ids, c.record.ID)
			err = nil
		}
		report(c.item, Report{Why: errors.Join(c.err, err).Error()})
	})
	return r.File.Forget(ids)
}

func idsOf(list []journal.Attached) []conn.ID {
	ids := make([]conn.ID, len(list))
	for n := range list {
		ids[n] = list[n].ID
	}
	return ids
}

func heldBy(a *journal.Attachment, ids []conn.ID) (held []conn.ID) {
	for _, id := range ids {
		if _, ok := a.Socket(id); ok {
			held = append(held, id)
		}
	}
	return held
}

func (r *Run) step(s Step) {
	if r.Step != nil {
		r.Step(s)
	}
}

// text shows one value of a part, for messages.
func text(p keepalive.Part, v int32) string {
	switch p {
	case keepalive.PartIdle, keepalive.PartInterval:
		return fmt.Sprintf("%s %ds", p, v)
	case keepalive.PartUserTimeout:
		return fmt.Sprintf("%s %dms", p, v)
	}
	return fmt.Sprintf("%s %d", p, v)
}
