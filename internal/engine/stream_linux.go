package engine

import (
	"context"
	"errors"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

var errNeedsOwners = errors.New("stream connections: the filter looks at their owners")

// Stream is Scan without owners and settings, for any number of connections:
// it keeps none of them, but calls visit as the kernel lists them. A
// Connection is the callee's until it returns. When connections come and go
// meanwhile one may be missed, or visited twice. An error of visit ends it.
// The Snapshot has no connections, only what is to be said of the run.
func (e *Engine) Stream(ctx context.Context, req Request, visit func(*Connection) error) (*Snapshot, error) {
	req.NoOwners = true
	r, err := e.begin(req)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if r.req.Filter.NeedsOwners() {
		return nil, errNeedsOwners
	}
	start, n := time.Now(), 0
	var c Connection
	t := &r.snap.table
	torn := false // what was visited cannot be taken back
	for _, s := range r.spaces {
		err := r.list(ctx, s, func() { torn = true }, func(sock *conn.Sock, m *sockdiag.Memory) error {
			if torn {
				return sockdiag.ErrInterrupted
			}
			i, row := t.add()
			defer t.truncate(i)
			row.sock = *sock
			row.read = r.snap.kernel.reading(s.diag.Described())
			if m != nil {
				r.snap.memory = append(r.snap.memory[:0], *m)
			}
			if !r.selected(i) {
				return nil
			}
			n++
			r.snap.fill(&c, i)
			return visit(&c)
		})
		if err != nil {
			return nil, err
		}
	}
	r.how(start, "listed %s in %s by sock_diag", count(n, "connection"), count(len(r.spaces), "network namespace"))
	return r.snap, nil
}
