package engine

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/probe"
	"deadpeer/keepalive"
)

// askers work side by side; more only wait for the same locks in the kernel.
const askers = 2

// readSettings reads the keepalive settings of the selected connections from
// duplicates of their descriptors: of all when the request says so, else only
// where the pending timer does not tell already that keepalive is off. It
// gives how many were read, and how many could not be.
func (r *run) readSettings(ctx context.Context) (n, failed int) {
	t := &r.snap.table
	var rows []uint32
	for i := range t.n {
		row := t.at(i)
		if !row.skip && row.ownerN > 0 && row.sock.State != conn.Listen && r.lacksSettings(row) {
			rows = append(rows, i)
		}
	}
	if len(rows) == 0 {
		return 0, 0
	}
	defer held.Spare(askers)()
	var denied atomic.Int64
	var wg sync.WaitGroup
	for part := range slices.Chunk(rows, (len(rows)+askers-1)/askers) {
		wg.Go(func() {
			a := probe.New(probe.Options{})
			defer func() { _ = a.Close() }()
			for _, i := range part {
				if ctx.Err() != nil {
					return
				}
				row := t.at(i)
				s, refusal := a.Settings(probe.Target{ID: row.sock.ID(), State: row.sock.State, Owners: r.snap.ownersOf(row)})
				r.learn(row, s, refusal == probe.NotRefused)
				if refusal.Privilege() {
					denied.Add(1)
				}
			}
		})
	}
	wg.Wait()
	failed = int(denied.Load())
	return len(rows) - failed, failed
}

// lacksSettings reports whether the settings of a row are to be read.
func (r *run) lacksSettings(row *row) bool {
	if row.settings != 0 {
		return false
	}
	on, known := keepaliveByTimer(&row.sock)
	return r.req.Settings || on || !known
}

// learn books the settings of a row, of which there are few different ones.
func (r *run) learn(row *row, s keepalive.Settings, known bool) {
	if !known {
		return
	}
	r.settingsMu.Lock()
	defer r.settingsMu.Unlock()
	if row.settings != 0 && r.snap.settings[row.settings-1].Settings == s {
		return // and who chose them may be known
	}
	row.settings = r.book(setting{Settings: s})
}

// book gives what a row's settings are to be.
func (r *run) book(s setting) uint32 {
	at, ok := r.settingsAt[s]
	if !ok {
		r.snap.settings = append(r.snap.settings, s)
		at = uint32(len(r.snap.settings))
		r.settingsAt[s] = at
	}
	return at
}
