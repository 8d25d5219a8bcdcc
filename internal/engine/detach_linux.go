package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"deadpeer/internal/attach"
	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// attachment is one that was found, with what it says of itself.
type attachment struct {
	*journal.Attachment
	about attach.About
	given map[conn.ID]uint16 // with its rule: what hooks gave and nobody has noted yet, where that matters
}

// attachments reads all of them, the oldest first. Close them.
func (e *Engine) attachments() (list []attachment, err error) {
	files, err := journal.Attachments(e.options.RuntimeDir)
	for _, f := range files {
		about, badErr := attach.ParseAbout(f.About())
		if badErr != nil {
			err = errors.Join(err, fmt.Errorf("attachment %s: %w", f.ID, badErr), f.Close())
			continue
		}
		list = append(list, attachment{Attachment: f, about: about})
	}
	slices.SortFunc(list, func(a, b attachment) int {
		return cmp.Or(a.about.At.Compare(b.about.At), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// removeIfEmpty drops an attachment that has neither sockets nor a part in
// future ones.
func (a attachment) removeIfEmpty() error {
	if a.Len() > 0 || a.hooked() {
		return nil
	}
	return a.Remove()
}

// enforces reports whether a connection has a policy of the attachment that its
// program cannot weaken.
func (a attachment) enforces(id conn.ID) bool {
	rule, ok := a.given[id]
	if s, noted := a.Socket(id); noted {
		rule, ok = s.Rule, true
	}
	return ok && int(rule) < len(a.about.Rules) && a.about.Rules[rule].Enforce
}

func (a attachment) has(id conn.ID) bool {
	if _, ok := a.given[id]; ok {
		return true
	}
	_, ok := a.Socket(id)
	return ok
}

func newestFirst(oldestFirst []attachment) []attachment {
	list := slices.Clone(oldestFirst)
	slices.Reverse(list)
	return list
}

func filesOf(list []attachment) []*journal.Attachment {
	files := make([]*journal.Attachment, len(list))
	for n, a := range list {
		files[n] = a.Attachment
	}
	return files
}

func closeAttachments(list []attachment) {
	for _, a := range list {
		_ = a.Close() // whatever was written is durable
	}
}

// Attachments lists the policies that are on sockets of running programs, the
// oldest first. Sockets that have ended are forgotten, unless another deadpeer
// is at work.
func (e *Engine) Attachments(ctx context.Context) (list []Attachment, err error) {
	now, cancel := context.WithCancel(ctx)
	cancel()
	unlock, lockErr := e.lockSettings(now) // or not at once, then not at all
	if lockErr == nil {
		defer unlock()
	}
	found, err := e.attachments()
	defer closeAttachments(found)
	if len(found) == 0 {
		return nil, err
	}
	for n, f := range found {
		if lockErr == nil && f.hooked() {
			err = errors.Join(err, e.adopt(ctx, f, newestFirst(found[:n])))
		}
	}
	l, locateErr := e.locate(ctx, found)
	if locateErr != nil {
		return nil, locateErr
	}
	defer l.close()
	for n, f := range found {
		// While another deadpeer is at work this one may be its.
		a := Attachment{ID: f.ID, At: f.about.At, Half: lockErr == nil && !f.Whole()}
		for s := range f.All() {
			if slices.ContainsFunc(found[n+1:], func(newer attachment) bool { return newer.has(s.ID) }) {
				continue // what a hook of this one gave is another's now
			}
			if l.open[s.ID] {
				a.Sockets++
			} else {
				a.Ended++
			}
			if !s.Applied {
				a.Incomplete++
			}
		}
		for _, r := range f.about.Rules {
			a.New = a.New || r.New
		}
		a.Rules = listed(f.about.Rules)
		if a.New {
			err = errors.Join(err, e.countHooks(&a))
		}
		if lockErr == nil {
			err = errors.Join(err, f.Forget(l.gone(f)), f.removeIfEmpty())
		}
		list = append(list, a)
	}
	return list, err
}

func listed(rules []attach.Rule) (list []AttachedRule) {
	for _, r := range rules {
		list = append(list, AttachedRule{Match: r.Match, Policy: r.Policy, New: r.New, Enforce: r.Enforce})
	}
	return list
}

// AttachmentIDs names the policies that are on sockets of running programs, the
// oldest first, those without an open socket as well.
func (e *Engine) AttachmentIDs() ([]string, error) {
	list, err := e.attachments()
	closeAttachments(list)
	ids := make([]string, len(list))
	for n, a := range list {
		ids[n] = a.ID
	}
	return ids, err
}

// Detach gives the sockets of attachments their own values back and drops the
// attachments, but for sockets on which that did not succeed. Without IDs it
// takes all of them. What a program has changed meanwhile stays. Needs what
// Attach needs.
func (e *Engine) Detach(ctx context.Context, ids ...string) (_ []*Attached, err error) {
	unlock, err := e.lockSettings(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := e.attachments()
	defer closeAttachments(all)
	if err != nil {
		return nil, err
	}
	if ids, err = chosen(all, ids); err != nil || len(ids) == 0 {
		return nil, err
	}
	var out []*Attached
	for _, n := range slices.Backward(all) { // the newest first: it has what the older had
		if !slices.Contains(ids, n.ID) {
			continue
		}
		a, err := e.detach(ctx, all, n)
		if err != nil {
			return out, err
		}
		out = append(out, a)
	}
	return out, ctx.Err()
}

// chosen gives the IDs of those there are, all of them for none.
func chosen(all []attachment, ids []string) ([]string, error) {
	var known []string
	for _, a := range all {
		known = append(known, a.ID)
	}
	for _, id := range ids {
		if !slices.Contains(known, id) {
			return nil, &UnknownAttachmentError{id, known}
		}
	}
	if len(ids) == 0 {
		return known, nil
	}
	return ids, nil
}

func (e *Engine) detach(ctx context.Context, all []attachment, a attachment) (*Attached, error) {
	if err := a.SetWhole(false); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, func(o attachment) bool { return o.Attachment == a.Attachment })
	older := newestFirst(all[:at])
	if a.hooked() {
		// The hooks end first: with --enforce they would hold us to the policy, too.
		if err := e.endHooks(ctx, a, older); err != nil {
			return nil, err
		}
	}
	var unread error // which of ours a newer one's hooks have given its policy since
	for n, o := range all[at+1:] {
		if o.hooked() {
			unread = errors.Join(unread, e.adopt(ctx, o, newestFirst(all[:at+1+n])))
		}
	}
	l, err := e.locate(ctx, []attachment{a})
	if err != nil {
		return nil, err
	}
	defer l.close()
	if unread != nil {
		l.note(false, "%v", unread)
	}
	do := attach.Run{
		File: a.Attachment, Older: filesOf(older), Newer: filesOf(all[at+1:]),
		Rate: e.options.Rate, Ended: l.ended, Step: e.options.AttachStep,
	}
	means := l.means(a)
	defer means.close()
	do.Transport, do.Batch = means.transport, means.batch
	sockets, targets := a.Sockets(), l.held(a)
	out := &Attached{ID: a.ID, Snapshot: l.snap}
	defaults := map[uint32]keepalive.Policy{} // of namespaces, as they are needed
	start := time.Now()
	err = do.Detach(ctx, targets, func(n int, rep attach.Report) {
		l.book(out, sockets[n], rep, defaults)
	})
	l.how(start, "changed %s by %s", count(len(targets), "connection"), means.name)
	if err != nil {
		return nil, err
	}
	if a.Len() > 0 {
		err = a.SetWhole(true)
	} else {
		err = a.Remove()
	}
	if err != nil {
		return nil, err
	}
	l.keepOnly()
	l.finish()
	return out, nil
}

// book counts what became of one socket, and shows it where it is listed.
func (l *located) book(out *Attached, s journal.Attached, rep attach.Report, defaults map[uint32]keepalive.Policy) {
	out.Matched++
	switch {
	case rep.Ended:
		out.Ended++
	case rep.Done:
		out.Changed++
	case rep.Passed:
		out.Passed++
	default:
		out.Failed++
	}
	out.ByValue += l.byValue(s, rep.Back, defaults)
	i, listed := l.find(s.ID)
	if !listed || rep.Ended {
		if rep.Why != "" {
			l.note(false, "connection %s: %s", s.ID, rep.Why)
		}
		return
	}
	l.snap.outcomes[i] = Outcome{Action: actionDetach, Done: rep.Done, Error: rep.Why}
	l.bookSettings(l.snap.table.at(i), rep)
	if rep.Done {
		delete(l.snap.attached, s.ID)
	}
}

// byValue counts the values put back that the host has as well.
func (l *located) byValue(s journal.Attached, back []keepalive.Part, defaults map[uint32]keepalive.Policy) (n int) {
	if len(back) == 0 || l.spaces[s.ID.NetNS] == nil {
		return 0
	}
	host, ok := defaults[s.ID.NetNS]
	if !ok {
		host, _ = readDefaults(l.spaces[s.ID.NetNS].ns) // zero, which no socket has, where they cannot be read
		defaults[s.ID.NetNS] = host
	}
	for part, same := range map[keepalive.Part]bool{
		keepalive.PartIdle:     time.Duration(s.Was.Idle)*time.Second == host.Idle,
		keepalive.PartInterval: time.Duration(s.Was.Interval)*time.Second == host.Interval,
		keepalive.PartProbes:   int(s.Was.Probes) == host.Probes,
	} {
		if same && slices.Contains(back, part) {
			n++
		}
	}
	return n
}

// keepOnly hides the rows without an outcome, and reads the others' settings.
func (l *located) keepOnly() {
	for i := range l.snap.table.n {
		if _, ok := l.snap.outcomes[i]; !ok {
			l.snap.table.at(i).skip = true
		}
	}
	l.readSettings(context.Background())
}

// attachedSockets are the sockets that we have put a policy on.
func (e *Engine) attachedSockets(ctx context.Context) (map[conn.ID]bool, error) {
	files, err := journal.Attachments(e.options.RuntimeDir)
	defer func() {
		for _, f := range files {
			_ = f.Close() // nothing was written to it
		}
	}()
	ids := map[conn.ID]bool{}
	for _, f := range files {
		for s := range f.All() {
			ids[s.ID] = true
		}
	}
	if e.mayUseBPF() {
		err = errors.Join(err, e.hookedSockets(ctx, ids))
	}
	return ids, err
}
