package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Undone is what Restore would put back, or has put back.
type Undone struct {
	Nothing bool // no journal tells of a change
	// Unrecorded, with Nothing, is what deadpeer may have left all the same.
	Unrecorded *Unrecorded
	Live       []LiveChange
	File       *FileChange
	// Left is what somebody else has set since, and is left alone.
	Left   []string
	Reboot bool  // in force only after one
	Err    error // of what could not be put back; the journal is kept then
}

// Restore puts back what was there before the first Set: values and file, the
// file byte for byte. What somebody else has set since is left alone and told.
// After a reboot values are what the files say without deadpeer's, or else the
// system's defaults. Needs what Set needs.
func (h *Host) Restore(ctx context.Context) (Undone, error) {
	u, err := h.restore(ctx)
	if err = errors.Join(err, u.Err); err != nil {
		return u, fmt.Errorf("restore host: %w", err)
	}
	return u, nil
}

func (h *Host) restore(ctx context.Context) (Undone, error) {
	if rec, err := h.load(); err != nil {
		return Undone{}, err
	} else if rec == nil {
		return h.nothing(), nil
	}
	release, err := h.lock(ctx)
	if err != nil {
		return Undone{}, err
	}
	defer release()
	rec, err := h.load()
	switch {
	case err != nil:
		return Undone{}, err
	case rec == nil:
		return h.nothing(), nil
	}
	// A set that comes after half of this must go all the way first.
	original := rec.Original
	rec.Before = &original
	if err := rec.store(h.journal()); err != nil {
		return Undone{}, err
	}
	u := h.undo(rec, original)
	if u.Err != nil {
		return u, nil
	}
	return u, h.forget()
}

// PlanRestore tells what Restore would do. It changes nothing.
func (h *Host) PlanRestore() (Undone, error) {
	rec, err := h.load()
	switch {
	case err != nil:
		return Undone{}, err
	case rec == nil:
		return h.nothing(), nil
	}
	u := h.compare(rec, rec.Original)
	if u.Err != nil {
		return u, fmt.Errorf("restore host: %w", u.Err)
	}
	return u, nil
}

// mend puts back what a change left that was killed, and gives the journal of
// what was changed before it, nil when there is none.
func (h *Host) mend() (*record, []string, error) {
	rec, err := h.load()
	if err != nil || rec == nil {
		return nil, nil, err
	}
	if rec.Before == nil {
		rec, err = h.rebase(rec)
		return rec, nil, err
	}
	before := *rec.Before
	u := h.undo(rec, before)
	if u.Err != nil {
		return nil, nil, fmt.Errorf("put back what an interrupted change left: %w", u.Err)
	}
	said := []string{"an earlier change was interrupted; what it had done was put back first"}
	said = append(said, u.Left...)
	// The first change leaves nothing to remember.
	first := len(before.Live) == len(rec.Original.Live)
	for name, v := range before.Live {
		o, ok := rec.Original.Live[name]
		first = first && ok && (o == nil && v == nil || o != nil && v != nil && *o == *v)
	}
	first = first && (before.File == nil) == (rec.Original.File == nil)
	if f, o := before.File, rec.Original.File; f != nil && o != nil {
		first = first && f.Exists == o.Exists && bytes.Equal(f.Content, o.Content)
	}
	if err := h.settle(rec, first); err != nil || first {
		return nil, said, err
	}
	rec, err = h.rebase(rec)
	return rec, said, err
}

// rebase makes a journal of an earlier boot one of this: the originals are
// what the files say without deadpeer's. nil when it is of a network namespace
// that is gone.
func (h *Host) rebase(rec *record) (*record, error) {
	same, err := h.sameBoot(rec)
	if err != nil || same {
		return rec, err
	}
	now, err := h.newRecord()
	if n := h.options.Netns; err != nil || n != nil && !n.Boot {
		return nil, err
	}
	rec.Boot, rec.Netns, rec.Cookie = now.Boot, now.Netns, now.Cookie
	var file *content
	if f := rec.Original.File; f != nil {
		file = &content{bytes: f.Content, absent: !f.Exists}
	}
	view, err := h.sys.boot(file)
	if err != nil {
		return nil, err
	}
	for _, p := range h.sys.parameters() {
		if _, ok := rec.Original.Live[p.Name]; ok {
			rec.Original.Live[p.Name] = view.text(p)
		}
	}
	return rec, nil
}

// sameBoot reports whether what the journal says of values is of this boot,
// and of this network namespace.
func (h *Host) sameBoot(rec *record) (bool, error) {
	boot, err := h.sys.bootID()
	if err != nil {
		return false, err
	}
	n := h.options.Netns
	return rec.Boot == boot && (n == nil || rec.Netns == n.Inode && rec.Cookie == n.Cookie), nil
}

// text is the value of a parameter after boot.
func (v bootView) text(p Parameter) *string {
	value := p.Default
	if w, ok := v.winner(p); ok {
		value = w.Value
	}
	text := strconv.FormatInt(value, 10)
	return &text
}

// undo makes everything what the snapshot says, as far as it is deadpeer's.
func (h *Host) undo(rec *record, to snapshot) Undone {
	u := h.compare(rec, to)
	if u.Err != nil {
		return u
	}
	var errs []error
	// The file goes first: what it says decides values after a reboot.
	if f := u.File; f != nil {
		if err := putFile(h.options.Root, f.state, nil); err != nil {
			errs = append(errs, fmt.Errorf("put back %s: %w", f.Path, denied(err)))
		}
		h.step(StepPutBack)
	} else if to.File != nil { // one that is not complete
		temp := tempOf(filepath.Join(h.options.Root, to.File.Path))
		if err := remove(temp); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", temp, denied(err)))
		}
		if to.File.NoFolder {
			_ = os.Remove(filepath.Dir(temp)) // one that has got other files stays
		}
	}
	for _, l := range u.Live {
		var err error
		if l.before == nil {
			err = h.sys.unset(l.Name)
		} else {
			err = h.sys.set(l.Name, *l.before)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put back %s: %w", l.Name, err))
		}
		h.step(StepPutBack)
	}
	u.Err = errors.Join(errs...)
	return u
}

// compare tells what differs from the snapshot, and what of it is not
// deadpeer's. In a LiveChange, before is what goes back.
func (h *Host) compare(rec *record, to snapshot) (u Undone) {
	u.Reboot = !h.sys.told()
	sameBoot, err := h.sameBoot(rec)
	if err != nil {
		return Undone{Err: err}
	}
	if n := h.options.Netns; !sameBoot && n != nil && !n.Boot {
		return u // that namespace is gone, another has its number
	}
	var file *content
	if to.File != nil {
		if file, err = h.compareFile(rec, to.File, &u); err != nil {
			return Undone{Err: err}
		}
	}
	var view bootView
	if !sameBoot {
		if view, err = h.sys.boot(file); err != nil {
			return Undone{Err: err}
		}
	}
	for _, p := range h.sys.parameters() {
		original, ok := to.Live[p.Name]
		if !ok {
			continue
		}
		if !sameBoot {
			original = view.text(p)
		}
		if err := h.compareLive(rec, p, original, sameBoot, &u); err != nil {
			return Undone{Err: err}
		}
	}
	return u
}

func (h *Host) compareLive(rec *record, p Parameter, original *string, sameBoot bool, u *Undone) error {
	now, present, err := h.sys.get(p.Name)
	if err != nil {
		return fmt.Errorf("read %s: %w", p.Name, err)
	}
	switch {
	case !present && original == nil, present && original != nil && p.same(now, *original):
		return nil
	case !present || !slices.ContainsFunc(rec.Wrote[p.Name], func(w string) bool { return p.same(w, now) }):
		if sameBoot {
			u.Left = append(u.Left, fmt.Sprintf("%s is %s, which deadpeer did not set: left alone", p.Name, now))
		}
		return nil
	}
	l := LiveChange{Parameter: p, To: p.Default, before: original}
	if v, ok := p.parse(now); ok {
		l.From = &v
	}
	if original != nil {
		l.To, _ = p.parse(*original) // checked when the journal was read
	}
	u.Live = append(u.Live, l)
	return nil
}

// compareFile tells whether the file is to be put back, and what it will say
// then.
func (h *Host) compareFile(rec *record, to *fileState, u *Undone) (*content, error) {
	now, err := stateOf(h.options.Root, to.Path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", to.Path, err)
	}
	switch {
	case now.Exists == to.Exists && bytes.Equal(now.Content, to.Content):
		return nil, nil
	case !now.Exists, !slices.Contains(rec.Files, hashOf(now.Content)):
		u.Left = append(u.Left, to.Path+" is not as deadpeer wrote it: left alone")
		return nil, nil
	}
	u.File = &FileChange{Path: to.Path, Before: now.Content, After: to.Content, state: to}
	return &content{bytes: to.Content, absent: !to.Exists}, nil
}

// Removed reports whether the change ends with no file.
func (f FileChange) Removed() bool { return f.state != nil && !f.state.Exists && f.After == nil }
