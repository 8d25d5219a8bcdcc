package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"deadpeer/internal/held"
	"deadpeer/keepalive"
)

// What a hook pins besides when it follows its programs.
const (
	pinNote    = ownProgNote
	pinListOwn = ownProgListOwn
)

// follow begins to note what programs set themselves. It comes before enforce,
// which shows others what it makes of their calls.
func (h *Hook) follow() error {
	spec, err := loadOwn()
	if err != nil {
		return err
	}
	if err := spec.Variables[ownVarOurs].Set(held.ThreadName()); err != nil {
		return err
	}
	var o struct {
		ownPrograms
		ownMaps
	}
	if err := load(spec, &o); err != nil {
		return err
	}
	defer func() { _, _ = o.ownPrograms.Close(), o.ownMaps.Close() }() // links keep them
	list, err := link.AttachIter(link.IterOptions{Program: o.ListOwn, Map: o.Own})
	if err != nil {
		return explain(err)
	}
	if err := errors.Join(list.Pin(filepath.Join(h.dir, pinListOwn)), list.Close()); err != nil {
		return err
	}
	h.note, err = h.link(pinNote, ebpf.AttachCGroupSetsockopt, o.Note)
	return err
}

// OwnCalls are the settings that programs have set on connections, by cookie.
type OwnCalls map[uint64]ownCalls

// OwnCalls gives what programs have set themselves since the hook was made, on
// all connections of its cgroup, though it may have been limited; nothing when
// the hook does not follow them.
func (h *Hook) OwnCalls(ctx context.Context) (OwnCalls, error) {
	calls := OwnCalls{}
	err := listed(ctx, h, pinListOwn, func(m *ownMade) error {
		calls[m.Cookie] = m.Calls
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list what programs set on connections of hook %s: %w", h.Label.ID, err)
	}
	return calls, nil
}

// Over makes s, which a connection had before, what it would have without us.
func (o OwnCalls) Over(cookie uint64, s keepalive.Settings) keepalive.Settings {
	all := Settings{Settings: s}
	o[cookie].over(&all)
	return all.Settings
}

// over is what a socket would have, without us, that had s before the calls.
func (c ownCalls) over(s *Settings) {
	for part, set := range []func(v int32){
		func(v int32) { s.KeepAlive = v != 0 },
		func(v int32) { s.Idle = time.Duration(v) * time.Second; s.Own.Idle = s.Idle },
		func(v int32) { s.Interval = time.Duration(v) * time.Second; s.Own.Interval = s.Interval },
		func(v int32) { s.Probes = int(v); s.Own.Probes = s.Probes },
		func(v int32) { s.UserTimeout = time.Duration(v) * time.Millisecond; s.Own.UserTimeout = s.UserTimeout },
	} {
		if c.Made>>part&1 == 1 {
			set(c.Value[part])
		}
	}
}
