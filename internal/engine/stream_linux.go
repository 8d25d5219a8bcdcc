package engine

import (
	"context"
	"slices"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

// Stream is Scan for any number of connections: where it can it keeps none of
// them, but calls visit as the kernel lists them. It can with BPF, or when no
// owners are wanted; not for databases, nor for the memory of connections with
// owners. When connections come and go meanwhile one may be missed. A
// Connection is the callee's until it returns. An error of visit ends it. The
// Snapshot has no connections, only what is to be said of the run.
func (e *Engine) Stream(ctx context.Context, req Request, visit func(*Connection) error) (*Snapshot, error) {
	r, err := e.begin(req)
	if err != nil {
		return nil, err
	}
	defer r.close()
	// What the kernel filters, sock_diag lists quicker.
	if r.wantsOwners() || !r.req.Memory && r.req.Filter.Kernel(conn.KernelSupport{}) == nil {
		r.openSockets()
	}
	if r.wantsOwners() && (r.sockets == nil || r.req.Memory || len(req.Databases) > 0 || r.req.Filter.States()&^conn.Connections != 0) {
		return e.visitScan(ctx, req, visit)
	}
	if r.snap.attached, err = e.attachedSockets(ctx); err != nil {
		r.note(false, "%v", err)
	}
	start := time.Now()
	s := &stream{run: r, visit: visit, hints: newHinter(r.snap)}
	if r.wantsOwners() {
		s.owners = r.search(ctx)
		defer s.owners.stop()
	}
	for _, space := range r.spaces {
		s.first = s.n
		if err := r.list(ctx, space, s.restart, s.next); err != nil {
			return nil, err
		}
	}
	r.listed(start, s.n)
	if s.owners != nil {
		if err := r.found(s.owners); err != nil {
			return nil, err
		}
		if r.unlisted != nil && !s.known { // sock_diag has listed them, without their settings
			return e.visitScan(ctx, req, visit)
		}
		if err := s.catchUp(); err != nil {
			return nil, err
		}
		r.noteHidden(s.ownerless)
	}
	return r.snap, ctx.Err()
}

// visitScan visits what a scan finds.
func (e *Engine) visitScan(ctx context.Context, req Request, visit func(*Connection) error) (*Snapshot, error) {
	snap, err := e.Scan(ctx, req)
	if err != nil {
		return nil, err
	}
	for c := range snap.All() {
		if err := visit(c); err != nil {
			return nil, err
		}
	}
	return snap, nil
}

// stream is a run that keeps connections only until it knows their owners.
type stream struct {
	*run
	visit     func(*Connection) error
	hints     *hinter
	owners    *ownerSearch // nil when they are not wanted
	known     bool         // the owners are: connections are shown as they come
	ownerless bool         // one that was shown has none
	torn      bool         // what was shown cannot be taken back
	n         int
	first     int // of those of the namespace
	c         Connection

	last  [16]uint64 // cookies
	lastN int
}

func (s *stream) restart() {
	if s.torn = s.n > s.first && (s.owners == nil || s.known); !s.torn {
		s.snap.table.truncate(min(s.snap.table.n, uint32(s.first)))
		s.n = s.first
		clear(s.last[:])
	}
}

// next takes a connection as it is listed.
func (s *stream) next(one *row, m *sockdiag.Memory) error {
	if s.torn {
		return sockdiag.ErrInterrupted
	}
	// A list that resumes in the middle of a bucket may have a socket twice, one
	// shortly after the other.
	if slices.Contains(s.last[:], one.sock.Cookie) {
		return nil
	}
	s.last[s.lastN%len(s.last)] = one.sock.Cookie
	s.lastN++
	s.n++
	i := s.snap.table.add(one)
	if s.owners == nil || s.known {
		if m != nil {
			s.snap.memory = append(s.snap.memory[:0], *m)
		}
		defer s.snap.table.truncate(i)
		return s.show(i)
	}
	select {
	case <-s.owners.done:
		return s.catchUp()
	default:
		return nil
	}
}

// catchUp shows what waits, when the owners are known.
func (s *stream) catchUp() error {
	if s.owners.err != nil {
		return s.owners.err
	}
	s.known = true
	t := &s.snap.table
	for i := range t.n {
		if err := s.show(i); err != nil {
			return err
		}
	}
	t.chunks, t.n = t.chunks[:min(1, len(t.chunks))], 0
	return nil
}

// show visits a row, if it is selected.
func (s *stream) show(i uint32) error {
	row := s.snap.table.at(i)
	if s.owners != nil {
		s.snap.owners = s.snap.owners[:0]
		s.snap.own(row, &s.owners.claims)
		s.name(s.snap.ownersOf(row))
		if s.req.Filter.NeedsOwners() {
			subject := s.subject(i)
			row.skip = s.rejects(&subject, s.req.Filter.NeedsVerdict())
		}
	}
	if !s.selected(i) {
		return nil
	}
	s.ownerless = s.ownerless || row.lost()
	s.hints.look(row)
	s.snap.fill(&s.c, i)
	return s.visit(&s.c)
}
