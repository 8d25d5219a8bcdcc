package engine

import (
	"context"
	"errors"
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
// Snapshot has no connections, only what is to be said of the run. The process is
// taken to have nothing else to do meanwhile (Alone of bpf.SocketsOptions).
func (e *Engine) Stream(ctx context.Context, req Request, visit func(*Connection) error) (*Snapshot, error) {
	r, err := e.begin(req)
	if err != nil {
		return nil, err
	}
	defer r.close()
	// What the kernel filters, sock_diag lists quicker.
	if r.wantsOwners() || !r.req.Memory && r.req.Filter.Kernel(conn.KernelSupport{}) == nil {
		r.openSockets(true)
	}
	if r.foresees() || r.wantsOwners() && (r.sockets == nil || r.req.Memory || len(req.Databases) > 0 || r.req.Filter.States()&^conn.Connections != 0) {
		return e.visitScan(ctx, req, visit)
	}
	if r.snap.attached, err = e.attachedSockets(ctx); err != nil {
		r.note(false, "%v", err)
	}
	s := &stream{run: r, hints: newHinter(r.snap), free: make(chan *shipment, shipments), full: make(chan *shipment, shipments)}
	for range shipments {
		s.free <- new(shipment)
	}
	listing, cancel := context.WithCancel(ctx)
	defer cancel()
	listed := make(chan error, 1)
	go func() {
		listed <- s.list(listing)
		close(s.full)
	}()
	var refused error
	for b := range s.full {
		for i := 0; i < b.shown && refused == nil; i++ {
			if refused = visit(&b.show[i]); refused != nil {
				cancel()
			}
		}
		s.free <- b
	}
	switch err := <-listed; {
	case refused != nil:
		return nil, refused
	case errors.Is(err, errLacksSettings):
		return e.visitScan(ctx, req, visit)
	case err != nil:
		return nil, err
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

// stream is a run that keeps no connections. It lists them and joins them with
// their owners on a goroutine of its own, a shipment at a time, while those
// before are visited.
type stream struct {
	*run
	hints     *hinter
	owners    *ownerSearch // nil when they are not wanted
	ownerless bool         // one that was shown has none
	n         int
	first     int  // of those of the namespace
	handed    bool // some of them were handed over
	torn      bool // what was handed over cannot be taken back
	late      bool // BPF has failed only after some were handed over

	loading    *shipment // nil until there is something for it
	free, full chan *shipment
	prefetched uint32 // for nobody

	last  [16]uint64 // cookies
	lastN int
}

const (
	shipments    = 3
	shipmentRows = 256
)

// shipment are connections on their way to being shown. Row n has the number n,
// and that memory.
type shipment struct {
	rows   [shipmentRows]row
	n      int
	memory []sockdiag.Memory
	owners []conn.Owner // as in Snapshot
	show   [shipmentRows]Connection
	shown  int
}

// errLacksSettings: sock_diag has listed what was to be listed by BPF.
var errLacksSettings = errors.New("listed without settings")

// list hands over what the kernel lists.
func (s *stream) list(ctx context.Context) error {
	start := time.Now()
	if s.wantsOwners() {
		s.owners = s.search(ctx)
		s.ready = s.owners.done
		defer s.owners.stop()
	}
	for _, space := range s.spaces {
		if s.loading != nil {
			s.hand()
		}
		s.first, s.handed = s.n, false
		if err := s.run.list(ctx, space, s.restart, s.next); s.torn {
			return errors.Join(err, sockdiag.ErrInterrupted, s.unlisted)
		} else if err != nil {
			return err
		}
	}
	s.listed(start, s.n)
	if s.owners != nil {
		if err := s.found(s.owners); err != nil {
			return err
		}
	}
	if s.loading != nil {
		s.hand()
	}
	s.noteHidden(s.ownerless)
	return ctx.Err()
}

// restart is called before a namespace is listed again: what was handed over
// cannot be taken back.
func (s *stream) restart() {
	if s.torn = s.handed; s.torn {
		return
	}
	s.n = s.first
	clear(s.last[:])
	if s.loading != nil {
		s.loading.n, s.loading.memory = 0, s.loading.memory[:0]
	}
}

// next takes a connection as it is listed.
func (s *stream) next(one *row, m *sockdiag.Memory) error {
	switch {
	case s.torn:
		return sockdiag.ErrInterrupted
	case s.owners == nil:
	case s.unlisted != nil && s.first == 0:
		return errLacksSettings
	case s.unlisted != nil && !s.late:
		s.late = true
		s.note(true, "the settings of some connections were not read: %v", s.unlisted)
	case s.owners.err != nil: // they are ready
		return s.owners.err
	}
	// A list that resumes in the middle of a bucket may have a socket twice, one
	// shortly after the other.
	if slices.Contains(s.last[:], one.sock.Cookie) {
		return nil
	}
	s.last[s.lastN%len(s.last)] = one.sock.Cookie
	s.lastN++
	s.n++
	s.add(one, m)
	return nil
}

// add adds a row to the shipment, and hands that over when it is full.
func (s *stream) add(one *row, m *sockdiag.Memory) {
	if s.loading == nil {
		s.loading = <-s.free
		s.loading.n, s.loading.shown, s.loading.memory = 0, 0, s.loading.memory[:0]
	}
	b := s.loading
	b.rows[b.n] = *one
	b.rows[b.n].number = uint32(b.n)
	if m != nil {
		b.memory = append(b.memory, *m)
	}
	if b.n++; b.n == shipmentRows {
		s.hand()
	}
}

// hand joins the connections of the shipment with their owners, and hands over
// those that are selected.
func (s *stream) hand() {
	b := s.loading
	s.loading, s.handed = nil, true
	if len(b.memory) > 0 {
		s.snap.memory = b.memory
	}
	if s.owners != nil {
		for i := range b.n {
			s.prefetched += s.owners.claims.prefetch(b.rows[i].sock.Inode)
		}
		s.snap.owners = b.owners[:0]
	}
	for i := range b.n {
		row := &b.rows[i]
		if s.owners != nil {
			s.snap.own(row, &s.owners.claims)
			s.name(s.snap.ownersOf(row))
			if s.req.Filter.NeedsOwners() {
				subject := s.subject(row)
				row.skip = s.rejects(&subject, s.req.Filter.NeedsVerdict())
			}
		}
		if !s.selected(row) {
			continue
		}
		s.ownerless = s.ownerless || row.lost()
		s.hints.look(row)
		c := &b.show[b.shown]
		s.snap.fill(c, row)
		c.Forecast()
		b.shown++
	}
	b.owners = s.snap.owners
	s.full <- b
}
