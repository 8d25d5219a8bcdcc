package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/internal/probe"
	"deadpeer/internal/procfd"
)

// recover undoes what is in the journals of processes that are gone.
func (e *Engine) recover(ctx context.Context) (restored int, err error) {
	err = e.replay(ctx, func(_ journal.Orphan, n, _ int, _ error) { restored += n })
	return restored, err
}

// replay undoes what is in the journals of processes that are gone, and
// reports each of them. A journal of which something could not be put back
// stays for another try. A peer that has to answer first is no error: nothing
// can be done about it.
func (e *Engine) replay(ctx context.Context, report func(o journal.Orphan, restored, waiting int, err error)) (err error) {
	if _, err := os.Stat(e.options.RuntimeDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	orphans, err := journal.Orphans(e.options.RuntimeDir)
	if len(orphans) == 0 {
		return err
	}
	lock, lockErr := journal.Lock(ctx, e.options.RuntimeDir)
	if lockErr == nil {
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	undo := undoer{e: e, asker: probe.New(probe.Options{})}
	defer func() { _ = undo.asker.Close() }()
	for _, o := range orphans {
		failed, waiting, before := lockErr, 0, undo.restored
		for _, r := range o.Records {
			if lockErr != nil || ctx.Err() != nil {
				failed = errors.Join(lockErr, ctx.Err())
				break
			}
			if err := undo.record(ctx, r); errors.Is(err, probe.Probing) {
				waiting++
			} else {
				failed = errors.Join(failed, err)
			}
		}
		if failed == nil && waiting == 0 {
			failed = o.Remove()
		} else {
			_ = o.Close() // nothing was written to it
		}
		report(o, undo.restored-before, waiting, failed)
		err = errors.Join(err, failed)
	}
	return err
}

type undoer struct {
	e        *Engine
	asker    *probe.Asker
	holders  map[uint64][]conn.Owner // of all sockets, by cookie; nil until needed
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
			if u.holders, _, err = u.e.holders(ctx, u.asker.Cookie); err != nil {
				return err
			}
		}
		if target.Owners = u.holders[r.ID.Cookie]; len(target.Owners) == 0 {
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

// holders asks every descriptor of every process for its cookie. Listing
// sockets by namespace would miss those in namespaces that no process lives
// in. hidden says what could not be looked at.
func (e *Engine) holders(ctx context.Context, cookie func(conn.Owner) (uint64, bool)) (_ map[uint64][]conn.Owner, hidden string, err error) {
	workers := runtime.GOMAXPROCS(0)
	owners := make([][]conn.Owner, workers)
	options := procfd.SocketsOptions{Workers: workers}
	stats, err := procfd.New(e.options.ProcRoot).Sockets(ctx, options, func(worker int, _ uint32, o conn.Owner) {
		owners[worker] = append(owners[worker], o)
	})
	if err != nil {
		return nil, "", err
	}
	found := map[uint64][]conn.Owner{}
	for _, o := range slices.Concat(owners...) {
		if cookie, ok := cookie(o); ok {
			found[cookie] = append(found[cookie], o)
		}
	}
	return found, stats.Missing(), nil
}
