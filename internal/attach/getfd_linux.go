package attach

import (
	"context"

	"deadpeer/internal/held"
	"deadpeer/keepalive"
)

// Duplicates is the transport by duplicates of descriptors, taken one at a
// time (pidfd_getfd(2)). For one goroutine at a time. Close it.
type Duplicates struct{ taker *held.Taker }

// Getfd gives the transport by pidfd_getfd(2).
func Getfd() *Duplicates { return &Duplicates{held.New()} }

// Close lets go of the processes.
func (d *Duplicates) Close() { d.taker.Close() }

// Look reads settings.
func (d *Duplicates) Look(ctx context.Context, targets []Target, report func(i int, s keepalive.Settings, err error)) {
	var s keepalive.Settings
	d.each(ctx, targets, func(_ int, fd uintptr) (err error) {
		s, err = keepalive.GetFD(fd)
		return err
	}, func(i int, err error) { report(i, s, err) })
}

// Set is keepalive.SetFD on each.
func (d *Duplicates) Set(ctx context.Context, targets []Target, policies []keepalive.Policy, report func(i int, err error)) {
	d.each(ctx, targets, func(i int, fd uintptr) error { return keepalive.SetFD(fd, policies[i]) }, report)
}

// Restore is keepalive.RestoreFD on each.
func (d *Duplicates) Restore(ctx context.Context, targets []Target, settings []keepalive.Settings, report func(i int, err error)) {
	d.each(ctx, targets, func(i int, fd uintptr) error { return keepalive.RestoreFD(fd, settings[i]) }, report)
}

func (d *Duplicates) each(ctx context.Context, targets []Target, do func(i int, fd uintptr) error, report func(i int, err error)) {
	for i, t := range targets {
		if err := ctx.Err(); err != nil {
			report(i, err)
			continue
		}
		s, refusal := d.taker.Take(t.ID.Cookie, t.Owners)
		switch {
		case refusal == held.None:
			err := do(i, uintptr(s.FD))
			d.taker.Give(s)
			report(i, err)
		case refusal.Gone(), refusal == held.NoOwner:
			report(i, ErrGone)
		default:
			report(i, refusal)
		}
	}
}
