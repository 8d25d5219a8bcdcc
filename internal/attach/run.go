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
	Ended  func(conn.ID) bool // detaching: a socket that is not found has ended for good
	Step   func(Step)         // called at each step of a batch, for tests; may be nil

	onlyThis bool // detaching means: as it was before this attachment
}

// Report is what became of one socket.
type Report struct {
	Done  bool
	Ended bool             // detaching: there was nothing to be done
	Why   string           // why not, or what was left out
	Back  []keepalive.Part // detaching: what was put back by value
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
	targets, policies := make([]Target, len(which)), make([]keepalive.Policy, len(which))
	for n, i := range which {
		targets[n], policies[n] = items[i].Target, keepalive.Policy{UserTimeout: items[i].Policy.UserTimeout}
	}
	r.Transport.Set(ctx, targets, policies, func(n int, err error) {
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
}

func (r *Run) attachBatch(ctx context.Context, items []Item, which []int, report func(int, Report)) (waiting []pending, err error) {
	ctx = context.WithoutCancel(ctx) // a batch begun is ended
	batch, waiting := r.prepare(ctx, items, which, report)
	records := make([]journal.Attached, len(batch))
	targets, policies := make([]Target, len(batch)), make([]keepalive.Policy, len(batch))
	ids := make([]conn.ID, 0, len(batch))
	for n, c := range batch {
		records[n], targets[n], policies[n] = c.record, items[c.item].Target, c.policy
	}
	if err := r.File.Add(records); err != nil {
		return waiting, err
	}
	r.step(StepJournalled)
	r.Transport.Set(ctx, targets, policies, func(n int, err error) { batch[n].err = err })
	r.step(StepSet)
	var failed []change
	for _, c := range batch {
		if c.err != nil {
			failed = append(failed, c)
		} else {
			ids = append(ids, c.record.ID)
		}
	}
	if err := r.File.Applied(ids); err != nil {
		return waiting, err
	}
	r.step(StepApplied)
	for _, c := range batch {
		switch {
		case c.err != nil:
		case c.waiting != "":
			waiting = append(waiting, pending{c.item, true, c.waiting})
		default:
			report(c.item, Report{Done: true})
		}
	}
	return waiting, r.takeBack(ctx, items, failed, report)
}

// prepare reads what the sockets have, and leaves out what is not to be
// changed, or not now.
func (r *Run) prepare(ctx context.Context, items []Item, which []int, report func(int, Report)) (batch []change, waiting []pending) {
	targets := make([]Target, len(which))
	for n, i := range which {
		targets[n] = items[i].Target
	}
	r.Transport.Look(ctx, targets, func(n int, found keepalive.Settings, err error) {
		i := which[n]
		it := &items[i]
		if err == nil && found.UserTimeout < 0 {
			err = errors.New("it has no user timeout that could be read")
		}
		if err != nil {
			report(i, Report{Why: err.Error()})
			return
		}
		if why := Wait(&it.Sock, it.Policy); why != "" {
			waiting = append(waiting, pending{i, false, why})
			return
		}
		c := change{item: i, policy: it.Policy}
		if c.waiting = TimeoutWait(&it.Sock, it.Policy); c.waiting != "" {
			c.policy.UserTimeout = -1
		}
		set := with(found, it.Policy)
		var fatal *keepalive.PolicyError
		if err := set.Validate(); errors.As(err, &fatal) && fatal.Field == string(keepalive.PartUserTimeout) {
			report(i, Report{Why: err.Error()})
			return
		}
		c.record = journal.Attached{
			ID: it.Target.ID, Rule: it.Rule, Was: r.before(it.Target.ID, valuesOf(found)), Found: valuesOf(found), Set: valuesOf(set),
		}
		if len(it.Target.Owners) > 0 {
			c.record.Owner = it.Target.Owners[0]
		}
		batch = append(batch, c)
	})
	return batch, waiting
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
	targets, settings := make([]Target, len(failed)), make([]keepalive.Settings, len(failed))
	for n, c := range failed {
		targets[n], settings[n] = items[c.item].Target, settingsOf(c.record.Found)
	}
	var ids []conn.ID
	r.Transport.Restore(ctx, targets, settings, func(n int, err error) {
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
