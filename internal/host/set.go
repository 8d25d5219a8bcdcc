package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Change is what is wanted.
type Change struct {
	Values   map[Part]int64 // seconds, or counts
	LiveOnly bool           // leave the next boot alone
}

// Plan is what Set would do, or has done.
type Plan struct {
	Live []LiveChange
	File *FileChange // nil when no file is written
	// Lost are values that the next boot will not set as wanted, since another
	// line wins, or since no file is written although one was wanted.
	Lost []Loss
	// LostBy are those that another program than the one of this host's boot
	// would not set as wanted.
	LostBy []Loss
	// Without are the parts that this system has no parameter for.
	Without []Part
	Reboot  bool // in force only after one
	// Mended tells what a change that was killed before had left, and that it
	// was put back first.
	Mended []string
}

// LiveChange is one value. Equal values are part of a plan, too.
type LiveChange struct {
	Parameter
	From   *int64 // nil: none was kept, or it is no number
	To     int64
	before *string
}

// Unset reports whether a value goes away, in what Restore does.
func (l LiveChange) Unset() bool { return l.before == nil }

// FileChange is the content of the file for the next boot.
type FileChange struct {
	Path   string
	Before []byte
	After  []byte
	state  *fileState
}

// Loss is a value that will not be in force after the next boot.
type Loss struct {
	Parameter
	Wanted int64
	Reader string    // by which program
	Winner Persisted // what wins; File is "" when nothing sets it
	Why    string    // when it is not another line
}

// String tells it in one line.
func (l Loss) String() string {
	if l.Why != "" {
		return fmt.Sprintf("%s = %d will not outlast a reboot: %s", l.Name, l.Wanted, l.Why)
	}
	if l.Winner.File == "" {
		return fmt.Sprintf("%s = %d is not read by %s at boot", l.Name, l.Wanted, l.Reader)
	}
	return fmt.Sprintf("%s = %d loses at boot (%s) to %s, which sets %d: change that line", l.Name, l.Wanted, l.Reader, l.Winner.Where(), l.Winner.Value)
}

// Plan tells what Set would do, and takes no rights but to read. It returns a
// [*RangeError] as Set would. It changes nothing.
func (h *Host) Plan(c Change) (Plan, error) {
	plan, err := h.plan(c)
	if err != nil {
		return plan, fmt.Errorf("tune host: %w", err)
	}
	return plan, nil
}

func (h *Host) plan(c Change) (plan Plan, err error) {
	plan, err = h.choose(c)
	if err != nil {
		return plan, err
	}
	for i := range plan.Live {
		l := &plan.Live[i]
		text, present, err := h.sys.get(l.Name)
		if err != nil {
			return plan, fmt.Errorf("read %s: %w", l.Name, err)
		}
		if present {
			l.before = &text
			if v, ok := l.parse(text); ok {
				l.From = &v
			}
		}
	}
	path, why := h.sys.file()
	switch {
	case c.LiveOnly, !h.sys.told():
	case path == "":
		for _, l := range plan.Live {
			plan.Lost = append(plan.Lost, Loss{Parameter: l.Parameter, Wanted: l.To, Why: why})
		}
	default:
		if err := h.planFile(&plan, path); err != nil {
			return plan, err
		}
	}
	return plan, nil
}

// mayAct returns the error that Set would meet for want of rights.
func (h *Host) mayAct(plan Plan) error {
	for _, l := range plan.Live {
		if err := h.sys.writable(l.Name); err != nil {
			return fmt.Errorf("set %s: %w", l.Name, err)
		}
	}
	if f := plan.File; f != nil {
		if err := mayWrite(filepath.Join(h.options.Root, f.Path)); err != nil {
			return fmt.Errorf("set %s: %w", f.Path, denied(err))
		}
	}
	if err := mayWrite(filepath.Join(h.options.StateDir, "x")); err != nil {
		return fmt.Errorf("write journal: %w", denied(err))
	}
	return nil
}

// choose finds the parameters of what is wanted and holds it to their ranges.
func (h *Host) choose(c Change) (plan Plan, err error) {
	plan.Reboot = !h.sys.told()
	if c.LiveOnly && plan.Reboot {
		return plan, fmt.Errorf("change what is in force without a reboot: %w here", errors.ErrUnsupported)
	}
	left := map[Part]bool{}
	for part := range c.Values {
		left[part] = true
	}
	for _, p := range h.sys.parameters() {
		v, ok := c.Values[p.Part]
		if !ok || p.Most == 0 {
			continue
		}
		v = p.InUnit(v)
		if v < p.Least || v > p.Most {
			return plan, &RangeError{p, v}
		}
		delete(left, p.Part)
		plan.Live = append(plan.Live, LiveChange{Parameter: p, To: v})
	}
	for part := range left {
		plan.Without = append(plan.Without, part)
	}
	slices.Sort(plan.Without)
	switch {
	case len(plan.Live) > 0:
		return plan, nil
	case len(left) > 0:
		return plan, fmt.Errorf("set %v: %w: this system has no parameter for it", plan.Without, errors.ErrUnsupported)
	}
	return plan, errors.New("nothing to set: give a policy")
}

func (h *Host) planFile(plan *Plan, path string) error {
	state, err := stateOf(h.options.Root, path)
	if err != nil {
		return fmt.Errorf("set %s: %w", path, err)
	}
	after := editConf(state.Content, plan.values())
	plan.File = &FileChange{Path: path, Before: state.Content, After: after, state: state}
	view, err := h.sys.boot(&content{bytes: after})
	if err != nil {
		return err
	}
	for _, l := range plan.Live {
		if loss, lost := l.loses(view.reader, view.winner); lost {
			plan.Lost = append(plan.Lost, loss)
		}
		if view.second == nil {
			continue
		}
		if loss, lost := l.loses(view.other, view.second); lost {
			plan.LostBy = append(plan.LostBy, loss)
		}
	}
	return nil
}

// values are what the plan writes.
func (p Plan) values() []wanted {
	list := make([]wanted, len(p.Live))
	for i, l := range p.Live {
		list[i] = wanted{l.Name, strconv.FormatInt(l.To, 10)}
	}
	return list
}

// loses holds what a reader comes to against what is wanted.
func (l LiveChange) loses(by string, winner func(Parameter) (Persisted, bool)) (Loss, bool) {
	w, ok := winner(l.Parameter)
	if ok && w.Value == l.To {
		return Loss{}, false
	}
	return Loss{Parameter: l.Parameter, Wanted: l.To, Reader: by, Winner: w}, true
}

// Set puts the values in force and, unless the change says otherwise, writes
// them for the next boot. What it changes is journalled first; what a change
// that was killed left is put back before. It checks all that it can before it
// changes anything, reads back what it wrote, and when something fails midway
// puts everything back that it has done. Setting again keeps the originals of
// the first time. Needs root; on Linux CAP_NET_ADMIN over the network
// namespace, and the right to write to /etc/sysctl.d.
func (h *Host) Set(ctx context.Context, c Change) (Plan, error) {
	plan, err := h.set(ctx, c)
	if err != nil {
		return plan, fmt.Errorf("tune host: %w", err)
	}
	return plan, nil
}

func (h *Host) set(ctx context.Context, c Change) (plan Plan, err error) {
	if plan, err = h.plan(c); err == nil {
		err = h.mayAct(plan)
	}
	if err != nil { // before so much as the lock is made
		return plan, err
	}
	release, err := h.lock(ctx)
	if err != nil {
		return plan, err
	}
	defer release()
	rec, mended, err := h.mend()
	if err != nil {
		return plan, err
	}
	if plan, err = h.plan(c); err != nil {
		return plan, err
	}
	plan.Mended = mended
	if rec == nil {
		if rec, err = h.newRecord(); err != nil {
			return plan, err
		}
	}
	if f := plan.File; f != nil && rec.edited(f.state) {
		return plan, fmt.Errorf("%s was changed since deadpeer wrote it: keep your lines in another file, and remove this one", f.Path)
	}
	return plan, h.carryOut(plan, rec)
}

func (h *Host) newRecord() (*record, error) {
	boot, err := h.sys.bootID()
	if err != nil {
		return nil, err
	}
	rec := &record{Version: recordVersion, Boot: boot, At: time.Now().UTC().Truncate(time.Second)}
	if n := h.options.Netns; n != nil {
		rec.Netns, rec.Cookie = n.Inode, n.Cookie
	}
	return rec, nil
}

// edited reports whether the file has a content that neither was there before
// nor comes from deadpeer.
func (r *record) edited(now *fileState) bool {
	o := r.Original.File
	switch {
	case o == nil, !now.Exists:
		return false
	case o.Exists && bytes.Equal(o.Content, now.Content):
		return false
	}
	return !slices.Contains(r.Files, hashOf(now.Content))
}

func (h *Host) carryOut(plan Plan, rec *record) (err error) {
	first := len(rec.Wrote) == 0
	before := snapshot{Live: map[string]*string{}}
	var after []byte
	for _, l := range plan.Live {
		before.Live[l.Name] = l.before
	}
	if f := plan.File; f != nil {
		before.File, after = f.state, f.After
	}
	rec.remember(before, plan.values(), after)
	if err := rec.store(h.journal()); err != nil {
		return err
	}
	h.step(StepJournalled)
	if err := h.write(plan); err != nil {
		undone := h.undo(rec, before)
		if undone.Err == nil {
			undone.Err = h.settle(rec, first)
		}
		if undone.Err != nil {
			return fmt.Errorf("%w; and putting back what was done before it: %w; deadpeer tune restore tries again", err, undone.Err)
		}
		return fmt.Errorf("%w; everything was put back", err)
	}
	if err := h.settle(rec, false); err != nil {
		return err
	}
	h.step(StepDone)
	return nil
}

// settle says in the journal that no change is under way, or removes it when
// there was none before.
func (h *Host) settle(rec *record, forget bool) error {
	rec.Before = nil
	if forget {
		return h.forget()
	}
	return rec.store(h.journal())
}

func (h *Host) write(plan Plan) error {
	for i, w := range plan.values() {
		if err := h.sys.set(w.name, w.value); err != nil {
			return fmt.Errorf("set %s: %w", w.name, err)
		}
		switch got, _, err := h.sys.get(w.name); {
		case err != nil:
			return fmt.Errorf("read %s back: %w", w.name, err)
		case !plan.Live[i].same(got, w.value):
			return fmt.Errorf("set %s: it is %q now instead of %s", w.name, strings.TrimSpace(got), w.value)
		}
		h.step(StepSet)
	}
	if plan.File == nil {
		return nil
	}
	to := *plan.File.state
	if !to.Exists {
		to.Exists, to.Mode = true, 0o644
	}
	to.Content = plan.File.After
	if err := putFile(h.options.Root, &to, func() { h.step(StepFileWritten) }); err != nil {
		return fmt.Errorf("write %s: %w", to.Path, denied(err))
	}
	h.step(StepFilePut)
	return nil
}

// same compares two texts of a value.
func (p Parameter) same(a, b string) bool {
	if a == b {
		return true
	}
	x, okX := p.parse(a)
	y, okY := p.parse(b)
	return okX && okY && x == y
}
