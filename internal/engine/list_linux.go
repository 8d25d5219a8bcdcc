package engine

import (
	"context"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

// dump fills the table with what the kernel lists and the filter may match.
func (r *run) dump(ctx context.Context) error {
	t := &r.snap.table
	cookie := t.cookie
	for _, s := range r.spaces {
		first := t.n
		err := r.list(ctx, s, func() {
			t.truncate(first)
			r.index.rebuild(first, cookie)
			r.snap.memory = r.snap.memory[:min(first, uint32(len(r.snap.memory)))]
		}, func(one *row, m *sockdiag.Memory) error {
			// A list that resumes in the middle of a bucket may have a socket twice.
			if _, twice := r.find(one.sock.ID()); twice {
				return nil
			}
			r.index.insert(one.sock.Cookie, t.add(one), cookie)
			if m != nil {
				r.snap.memory = append(r.snap.memory, *m)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if r.req.Memory && uint32(len(r.snap.memory)) < t.n {
		return r.readMemory(ctx)
	}
	return nil
}

// readMemory reads what BPF does not tell.
func (r *run) readMemory(ctx context.Context) error {
	r.snap.memory = make([]sockdiag.Memory, r.snap.table.n)
	for _, s := range r.spaces {
		q := sockdiag.Query{States: r.req.Filter.States(), Filter: r.req.Filter.Kernel(conn.KernelSupport{}), Memory: true, NoInfo: true}
		err := s.diag.Dump(ctx, q, func(sock *conn.Sock, m *sockdiag.Memory) error {
			if i, ok := r.find(sock.ID()); ok {
				r.snap.memory[i] = *m
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rejects reports whether the filter does not select the subject. What the
// kernel did not tell may be taken for yes only while the question is open:
// owners, verdict or forecast are still to come.
func (r *run) rejects(s *conn.Subject, open bool) bool {
	t := r.req.Filter.Match(s)
	return t == conn.No || t == conn.Maybe && !open
}

// filterOpen: owners, verdict or forecast are still to come.
func (r *run) filterOpen() bool {
	return r.req.Filter.NeedsOwners() || r.req.Filter.NeedsVerdict() || r.foresees()
}

func (r *run) listsByBPF() bool { return r.sockets != nil && r.unlisted == nil }

// list visits what the kernel lists in a namespace and the filter may match.
// BPF does it where it can; it does not tell memory.
func (r *run) list(ctx context.Context, s *space, restart func(), visit func(*row, *sockdiag.Memory) error) error {
	states := r.req.Filter.States()
	if r.listsByBPF() && states&conn.Connections != 0 {
		var stopped error
		err := r.listByBPF(ctx, s, func(one *row, m *sockdiag.Memory) error {
			stopped = visit(one, m)
			return stopped
		})
		switch {
		case err == nil:
			if states &^= conn.Connections; states == 0 {
				return nil
			}
			restart = nil // what was visited twice is told apart
		case stopped != nil, ctx.Err() != nil:
			return err
		default:
			r.unlisted = err
			restart()
		}
	}
	return r.listByDiag(ctx, s, states, restart, visit)
}

func (r *run) listByDiag(ctx context.Context, s *space, states conn.States, restart func(), visit func(*row, *sockdiag.Memory) error) error {
	var subject conn.Subject
	var one row
	q := sockdiag.Query{
		States: states, Filter: r.req.Filter.Kernel(conn.KernelSupport{}), Memory: r.req.Memory && !r.listsByBPF(), Restart: restart,
	}
	open := r.filterOpen()
	return s.diag.Dump(ctx, q, func(sock *conn.Sock, m *sockdiag.Memory) error {
		if subject.Sock = sock; r.rejects(&subject, open) {
			return nil
		}
		one.sock, one.read = *sock, r.snap.kernel.reading(s.diag.Described())
		return visit(&one, m)
	})
}

func (r *run) find(id conn.ID) (i uint32, ok bool) {
	r.index.find(id.Cookie, func(at uint32) bool {
		if s := &r.snap.table.at(at).sock; s.Cookie == id.Cookie && s.NetNS == id.NetNS {
			i, ok = at, true
		}
		return ok
	})
	return i, ok
}

// lookAgain reads connections again whose pending timer would not be told to
// the tick, if they are few. BPF has told all of them so.
func (r *run) lookAgain() error {
	const few = 512 // some milliseconds' worth
	if !r.snap.kernel.counter.Known() || r.snap.table.n > few || r.listsByBPF() {
		return nil
	}
	for n, space := range r.spaces {
		var rows []*row
		var socks []*conn.Sock
		for i := range r.snap.table.n {
			row := r.snap.table.at(i)
			if !row.skip && row.sock.NetNS == n && row.sock.Timer != conn.TimerNone {
				fresh := row.sock
				rows, socks = append(rows, row), append(socks, &fresh)
			}
		}
		err := space.diag.Lookup(socks, func(i int, err error) {
			// One that is another thing now stays as it was selected.
			if err == nil && socks[i].State == rows[i].sock.State {
				rows[i].sock, rows[i].read = *socks[i], r.snap.kernel.reading(space.diag.Described())
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
