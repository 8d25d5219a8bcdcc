package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"deadpeer/internal/attach"
	"deadpeer/internal/journal"
)

// making is an attachment that is being made, under lockSettings.
type making struct {
	e      *Engine
	file   *journal.Attachment // nil until there is something to write down
	about  attach.About
	hooked bool         // connections that are made now get the policy
	older  []attachment // the newest first
}

// about is what the attachment that is asked for says of itself.
func (req *AttachRequest) about() attach.About {
	about := attach.About{At: time.Now(), Netns: req.Netns}
	for _, rule := range req.Rules {
		match := rule.Filter
		switch {
		case match == nil:
			match = req.Filter
		case req.Filter != nil:
			match = match.And(req.Filter)
		}
		r := attach.Rule{Policy: rule.Policy, New: rule.New, Enforce: rule.Enforce, Cgroup: cmp.Or(rule.Unit, rule.Cgroup)}
		if match != nil {
			r.Match = match.String()
		}
		about.Rules = append(about.Rules, r)
	}
	return about
}

// create makes a file of a name that is free.
func (m *making) create(req AttachRequest) error {
	m.about = req.about()
	others, err := m.e.attachments()
	closeAttachments(others)
	if err != nil {
		return err
	}
	if n := len(others); n > 0 { // a clock that was set back must not make it the older one
		if latest := others[n-1].about.At; !m.about.At.After(latest) {
			m.about.At = latest.Add(1)
		}
	}
	b, err := m.about.Encode()
	if err == nil {
		m.about, err = attach.ParseAbout(b) // in the units that sockets have
	}
	if err != nil {
		return err
	}
	for {
		var id [2]byte
		_, _ = rand.Read(id[:]) // never fails
		file, err := journal.CreateAttachment(m.e.options.RuntimeDir, hex.EncodeToString(id[:]), b)
		if err == nil {
			m.file = file
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

// findOlder finds the other attachments there are, with the sockets that hooks
// have given a policy meanwhile; without those that have ended unless it is for
// a dry run, which writes nothing.
func (m *making) findOlder(ctx context.Context, dry bool) error {
	all, err := m.e.attachments()
	slices.Reverse(all)
	for _, a := range all {
		if m.file != nil && a.ID == m.file.ID {
			_ = a.Close() // nothing was written to it
		} else {
			m.older = append(m.older, a)
		}
	}
	for n, a := range slices.Backward(m.older) {
		switch {
		case !a.hooked():
		case dry:
			given, hookErr := m.e.givenBy(ctx, a)
			m.older[n].given, err = given, errors.Join(err, hookErr)
		default:
			err = errors.Join(err, m.e.adopt(ctx, a, m.older[n+1:]))
		}
	}
	if dry || err != nil || len(m.older) == 0 {
		return err
	}
	l, err := m.e.locate(ctx, m.older)
	if err != nil {
		return err
	}
	defer l.close()
	for _, a := range m.older {
		err = errors.Join(err, a.Forget(l.gone(a)))
	}
	return err
}

// takenOver counts what was done, or is planned, to connections of the older
// attachments.
func (m *making) takenOver(r *run, items []attach.Item, rows []uint32) (list []TakenOver) {
	counts := make([]int, len(m.older))
	for n, i := range rows {
		if o, ok := r.snap.outcomes[i]; !ok || !o.Done && o.Error != "" {
			continue
		}
		if at := slices.IndexFunc(m.older, func(o attachment) bool { return o.has(items[n].Target.ID) }); at >= 0 {
			counts[at]++
		}
	}
	for n, o := range m.older {
		if counts[n] > 0 {
			list = append(list, TakenOver{o.ID, counts[n]})
		}
	}
	return list
}

func (m *making) attachment() attachment { return attachment{Attachment: m.file, about: m.about} }

// run is what changes sockets.
func (m *making) run() attach.Run {
	return attach.Run{File: m.file, Older: filesOf(m.older), Rate: m.e.options.Rate, Step: m.e.options.AttachStep}
}

// settle brings the attachment to its end, or undoes it after an error.
func (m *making) settle(ctx context.Context, err error) error {
	defer closeAttachments(m.older)
	switch {
	case m.file == nil:
		return err
	case err != nil:
		return errors.Join(err, m.undo(ctx))
	case m.file.Len() == 0 && !m.hooked:
		return m.file.Remove()
	}
	do := m.run()
	err = do.TakeOver()
	for _, o := range m.older {
		if err == nil {
			err = o.removeIfEmpty()
		}
	}
	if err == nil {
		err = m.file.SetWhole(true)
	}
	_ = m.file.Close() // whatever was written is durable
	if err != nil {
		return fmt.Errorf("end attachment %s: %w; deadpeer detach %[1]s takes it back", m.file.ID, err)
	}
	return nil
}

// undo gives all connections what they had, also those that the hooks gave the
// policy meanwhile. What cannot be put back stays in the file, for detach.
func (m *making) undo(ctx context.Context) error {
	failed, err := 0, error(nil)
	if m.hooked {
		err = m.e.endHooks(ctx, m.attachment(), m.older)
	}
	if err == nil && m.file.Len() > 0 {
		failed, err = m.putBack(ctx)
	}
	if err == nil && m.file.Len() == 0 {
		return m.file.Remove()
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%s could not be put back", count(failed, "connection")))
	}
	return errors.Join(fmt.Errorf("undo attachment %s: %w; deadpeer detach %[1]s tries again", m.file.ID, err), m.file.Close())
}

// putBack gives the connections in the file what they had, and counts those of
// which that did not succeed.
func (m *making) putBack(ctx context.Context) (failed int, err error) {
	a := m.attachment()
	l, err := m.e.locate(ctx, []attachment{a})
	if err != nil {
		return 0, err
	}
	defer l.close()
	means := l.means(a)
	defer means.close()
	do := m.run()
	do.Ended, do.Transport, do.Batch = l.ended, means.transport, means.batch
	err = do.Undo(ctx, l.held(a), func(_ int, rep attach.Report) {
		if !rep.Done {
			failed++
		}
	})
	return failed, err
}
