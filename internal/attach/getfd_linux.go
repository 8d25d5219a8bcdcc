package attach

import (
	"context"
	"sync"

	"deadpeer/internal/held"
	"deadpeer/keepalive"
)

// Duplicates is the transport by duplicates of descriptors (pidfd_getfd(2)),
// taken one at a time by each of two workers. Not safe for concurrent use.
// Close it.
type Duplicates struct{ takers [workers]*held.Taker }

// workers take side by side; more only wait for the same locks in the kernel.
const workers = 2

// Getfd gives the transport by pidfd_getfd(2).
func Getfd() *Duplicates {
	d := &Duplicates{}
	for w := range d.takers {
		d.takers[w] = held.New()
	}
	return d
}

// Close lets go of the processes.
func (d *Duplicates) Close() {
	for _, t := range d.takers {
		t.Close()
	}
}

// Look reads settings.
func (d *Duplicates) Look(ctx context.Context, targets []Target, report func(i int, s keepalive.Settings, err error)) {
	found := make([]keepalive.Settings, len(targets))
	d.each(ctx, len(targets), func(i int) *Target { return &targets[i] }, func(i int, fd uintptr) (err error) {
		found[i], err = keepalive.GetFD(fd)
		return err
	}, func(i int, err error) { report(i, found[i], err) })
}

// Set is keepalive.SetFD on each.
func (d *Duplicates) Set(ctx context.Context, changes []Change, report func(i int, err error)) {
	d.each(ctx, len(changes), func(i int) *Target { return &changes[i].Target }, func(i int, fd uintptr) error {
		c := &changes[i]
		if err := c.check(fd); err != nil {
			return err
		}
		return keepalive.SetFD(fd, c.Settings.Policy)
	}, report)
}

// Restore is keepalive.RestoreFD on each, and keepalive.GetFD.
func (d *Duplicates) Restore(ctx context.Context, changes []Change, report func(i int, err error)) {
	d.each(ctx, len(changes), func(i int) *Target { return &changes[i].Target }, func(i int, fd uintptr) error {
		c := &changes[i]
		if err := c.check(fd); err != nil {
			return err
		}
		if err := keepalive.RestoreFD(fd, c.Settings); err != nil {
			return err
		}
		now, err := keepalive.GetFD(fd)
		if err == nil && now != c.Settings {
			err = &notRestoredError{now, c.Settings}
		}
		return err
	}, report)
}

// check reports ErrDiffers where the change is not to be made.
func (c *Change) check(fd uintptr) error {
	if !c.Conditional {
		return nil
	}
	now, err := keepalive.GetFD(fd)
	if err == nil && now != c.Was {
		err = ErrDiffers
	}
	return err
}

// each calls do with a duplicate of each socket, from several goroutines, and
// then reports.
func (d *Duplicates) each(ctx context.Context, n int, target func(i int) *Target, do func(i int, fd uintptr) error, report func(i int, err error)) {
	errs := make([]error, n)
	defer held.Spare(workers)()
	var wg sync.WaitGroup
	for w, t := range d.takers {
		from, to := w*n/workers, (w+1)*n/workers
		if from == to {
			continue
		}
		wg.Go(func() {
			held.AsDeadpeer(func() {
				for i := from; i < to; i++ {
					if errs[i] = ctx.Err(); errs[i] == nil {
						errs[i] = on(t, target(i), i, do)
					}
				}
			})
		})
	}
	wg.Wait()
	for i, err := range errs {
		report(i, err)
	}
}

func on(taker *held.Taker, t *Target, i int, do func(i int, fd uintptr) error) error {
	s, refusal := taker.Take(t.ID.Cookie, t.Owners)
	switch {
	case refusal == held.None:
		defer taker.Give(s)
		return do(i, uintptr(s.FD))
	case refusal.Gone(), refusal == held.NoOwner:
		return ErrGone
	}
	return refusal
}
