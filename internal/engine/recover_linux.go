package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/internal/probe"
)

// recover undoes what is in the journals of processes that are gone. A
// journal of which something could not be put back stays for another try.
func (e *Engine) recover(ctx context.Context) (restored int, err error) {
	if _, err := os.Stat(e.options.RuntimeDir); errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	orphans, err := journal.Orphans(e.options.RuntimeDir)
	if len(orphans) == 0 {
		return 0, err
	}
	lock, lockErr := journal.Lock(ctx, e.options.RuntimeDir)
	if lockErr == nil {
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	undo := undoer{e: e, asker: probe.New(probe.Options{})}
	defer func() { _ = undo.asker.Close() }()
	for _, o := range orphans {
		failed := lockErr
		for _, r := range o.Records {
			if failed = errors.Join(failed, ctx.Err()); failed != nil {
				break
			}
			failed = undo.record(ctx, r)
		}
		if failed == nil {
			failed = o.Remove()
		} else {
			_ = o.Close() // nothing was written to it
		}
		err = errors.Join(err, failed)
	}
	return undo.restored, err
}

type undoer struct {
	e        *Engine
	asker    *probe.Asker
	holders  map[conn.ID][]conn.Owner // nil until needed
	restored int
}

// record puts one original back. The socket is found by the descriptor noted,
// and where that is another by now, among those of every process. One that
// has ended needs nothing.
func (u *undoer) record(ctx context.Context, r journal.Record) error {
	target := probe.Target{ID: r.ID, Owners: []conn.Owner{{PID: r.PID, FD: r.FD}}}
	err := u.asker.Restore(target, r)
	if hasEnded(err) {
		if u.holders == nil {
			if u.holders, err = u.e.holders(ctx); err != nil {
				return err
			}
		}
		if target.Owners = u.holders[r.ID]; len(target.Owners) == 0 {
			return nil
		}
		err = u.asker.Restore(target, r)
	}
	switch {
	case err == nil:
		u.restored++
	case !hasEnded(err):
		return fmt.Errorf("put back settings of connection %s: %w", r.ID, err)
	}
	return nil
}

func hasEnded(err error) bool {
	return errors.Is(err, probe.OwnerGone) || errors.Is(err, probe.Reused)
}

// holders maps every TCP connection of every namespace that can be entered to
// the descriptors that hold it.
func (e *Engine) holders(ctx context.Context) (map[conn.ID][]conn.Owner, error) {
	filter, err := conn.ParseFilter([]string{"state", "all"}, conn.Resolver{})
	if err != nil {
		return nil, err
	}
	r, err := e.see(ctx, Request{Netns: "all", Filter: filter})
	if err != nil {
		return nil, err
	}
	defer r.close()
	m := map[conn.ID][]conn.Owner{}
	for i := range r.snap.table.n {
		if row := r.snap.table.at(i); row.ownerN > 0 {
			m[row.sock.ID()] = r.snap.ownersOf(row)
		}
	}
	return m, nil
}
