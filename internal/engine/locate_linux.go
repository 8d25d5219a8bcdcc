package engine

import (
	"context"

	"golang.org/x/sys/unix"

	"deadpeer/internal/attach"
	"deadpeer/internal/conn"
	"deadpeer/internal/held"
)

// located is where the sockets of attachments are now.
type located struct {
	*run
	holders map[conn.ID][]conn.Owner
	open    map[conn.ID]bool // those that are no mere descriptors of ended connections
	sure    bool             // every process that could be attached to was looked into
}

// locate finds the sockets of attachments: among what the kernel lists in the
// namespaces it can find, by the descriptor noted, and then, unless the kernel
// would list them, among the descriptors of every process. Close the run.
func (e *Engine) locate(ctx context.Context, list []attachment) (*located, error) {
	req := Request{Netns: "all", Settings: true, onlyNetns: map[uint32]bool{}}
	for _, a := range list {
		req.alsoNetns = append(req.alsoNetns, a.about.Netns)
		for s := range a.All() {
			req.onlyNetns[s.ID.NetNS] = true
		}
	}
	r, err := e.see(ctx, req)
	if err != nil {
		return nil, err
	}
	r.snap.Notes = nil // of other namespaces than those of our sockets
	l := &located{run: r, holders: map[conn.ID][]conn.Owner{}, open: map[conn.ID]bool{}, sure: true}
	taker := held.New()
	defer taker.Close()
	lost := map[uint64]conn.ID{}
	for _, a := range list {
		for s := range a.All() {
			if i, ok := r.find(s.ID); ok && r.snap.table.at(i).ownerN > 0 {
				l.holders[s.ID], l.open[s.ID] = r.snap.ownersOf(r.snap.table.at(i)), true
			} else if !l.look(taker, s.ID, []conn.Owner{s.Owner}) && (ok || r.spaces[s.ID.NetNS] == nil) {
				lost[s.ID.Cookie] = s.ID
			}
		}
	}
	if len(lost) == 0 {
		return l, nil
	}
	holders, hidden, err := e.holders(ctx, taker.Cookie)
	if err != nil {
		r.close()
		return nil, err
	}
	l.sure = hidden == "" || effective()&(1<<unix.CAP_SYS_PTRACE) != 0
	for cookie, id := range lost {
		if owners := holders[cookie]; len(owners) > 0 {
			l.look(taker, id, owners)
		}
	}
	return l, nil
}

// look notes the holders of a socket if one of them has it.
func (l *located) look(taker *held.Taker, id conn.ID, owners []conn.Owner) bool {
	s, refusal := taker.Take(id.Cookie, owners)
	if refusal != held.None {
		return false
	}
	defer taker.Give(s)
	l.holders[id], l.open[id] = owners, s.State() != conn.Close
	return true
}

// ended reports whether a socket that no descriptor leads to is gone for good.
// One that the kernel lists even now may be on its way from one process to
// another; what stays hidden with CAP_SYS_PTRACE could not be attached to.
func (l *located) ended(id conn.ID) bool {
	return l.sure && l.hasEnded(id)
}

// held gives the sockets of an attachment, in the order of Sockets, with where
// they are and what they have.
func (l *located) held(a attachment) []attach.Held {
	sockets := a.Sockets()
	list := make([]attach.Held, len(sockets))
	for n, s := range sockets {
		list[n].Target = attach.Target{ID: s.ID, Owners: l.holders[s.ID]}
		if i, listed := l.find(s.ID); listed {
			list[n].Now, list[n].Known = l.settingsOf(l.snap.table.at(i))
		}
	}
	return list
}

// means chooses by what the sockets of an attachment are changed. Hooks give a
// policy to those, too, that wait to be accepted: there is no descriptor yet.
func (l *located) means(a attachment) means {
	if a.hooked() {
		return l.meansFrom(1, a.Len())
	}
	return l.run.means(a.Len())
}

// gone lists the sockets of an attachment that have ended for good.
func (l *located) gone(f attachment) (ids []conn.ID) {
	for s := range f.All() {
		if l.holders[s.ID] == nil && l.ended(s.ID) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}
