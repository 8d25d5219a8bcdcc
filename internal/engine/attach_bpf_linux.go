package engine

import (
	"cmp"
	"context"
	"errors"

	"deadpeer/internal/attach"
	"deadpeer/internal/bpf"
	"deadpeer/keepalive"
)

// bpfFrom is from how many sockets on the BPF program is the cheaper way: it is
// loaded for the run and walks through every socket of the host.
const bpfFrom = 4096

// bpfBatch sockets are changed in one walk.
const bpfBatch = 1 << 17

// means are those by which sockets are changed.
type means struct {
	transport  attach.Transport
	name       string
	batch      int                // 0 for the default
	duplicates *attach.Duplicates // for what is better done one by one
	bpf        *bpfTransport      // nil when not used
}

// means chooses by what n sockets are changed. Close them.
func (r *run) means(n int) means { return r.meansFrom(cmp.Or(r.e.bpfFrom, bpfFrom), n) }

// meansFrom chooses BPF from so many sockets on.
func (r *run) meansFrom(from, n int) means {
	d := attach.Getfd()
	if n < from || !r.e.mayUseBPF() {
		return means{d, "pidfd_getfd", 0, d, nil}
	}
	b := &bpfTransport{Duplicates: d, spaces: r.spaces, sockets: n}
	return means{b, "BPF", bpfBatch, d, b}
}

func (m means) close() {
	m.duplicates.Close()
	if m.bpf != nil && m.bpf.changer != nil {
		_ = m.bpf.changer.Close() // it has no more to do
	}
}

// bpfTransport changes sockets by an iterator over all of a namespace. Those
// in a namespace that is not open, and all of them if the kernel does not take
// the program, are reached by their descriptors.
type bpfTransport struct {
	*attach.Duplicates
	spaces  map[uint32]*space
	sockets int          // to be changed
	changer *bpf.Changer // nil until it is needed
	refused bool         // the kernel did not take it
}

// Look reads settings.
func (b *bpfTransport) Look(ctx context.Context, targets []attach.Target, report func(i int, s keepalive.Settings, err error)) {
	left := b.apply(ctx, len(targets), func(i int) (attach.Target, bpf.Change) { return targets[i], bpf.Change{} },
		func(i int, r bpf.Result) { report(i, r.Before.Settings, r.Err) })
	b.Duplicates.Look(ctx, pick(targets, left), func(n int, s keepalive.Settings, err error) { report(left[n], s, err) })
}

// Set is what keepalive.SetFD does.
func (b *bpfTransport) Set(ctx context.Context, changes []attach.Change, report func(i int, err error)) {
	left := b.change(ctx, bpf.Set, changes, report)
	b.Duplicates.Set(ctx, pick(changes, left), func(n int, err error) { report(left[n], err) })
}

// Restore is what keepalive.RestoreFD does, and reads again.
func (b *bpfTransport) Restore(ctx context.Context, changes []attach.Change, report func(i int, err error)) {
	left := b.change(ctx, bpf.Restore, changes, report)
	b.Duplicates.Restore(ctx, pick(changes, left), func(n int, err error) { report(left[n], err) })
}

func pick[T any](all []T, at []int) []T {
	some := make([]T, len(at))
	for n, i := range at {
		some[n] = all[i]
	}
	return some
}

func (b *bpfTransport) change(ctx context.Context, op bpf.Op, changes []attach.Change, report func(i int, err error)) (left []int) {
	return b.apply(ctx, len(changes), func(i int) (attach.Target, bpf.Change) {
		c := &changes[i]
		s := c.Settings
		s.KeepAlive = s.KeepAlive || op == bpf.Set // as keepalive.SetFD has it
		return c.Target, bpf.Change{Op: op, Settings: s, Conditional: c.Conditional, Was: c.Was}
	}, func(i int, r bpf.Result) {
		if errors.Is(r.Err, bpf.ErrDiffers) {
			r.Err = attach.ErrDiffers
		}
		report(i, r.Err)
	})
}

// apply makes n changes namespace by namespace, and gives those that it could
// not reach.
func (b *bpfTransport) apply(
	ctx context.Context, n int, change func(i int) (attach.Target, bpf.Change), report func(i int, r bpf.Result),
) (left []int) {
	type space struct {
		targets []bpf.Target
		at      []int
	}
	bySpace := map[uint32]*space{}
	for i := range n {
		t, c := change(i)
		s := bySpace[t.ID.NetNS]
		if s == nil {
			s = &space{}
			bySpace[t.ID.NetNS] = s
		}
		s.targets, s.at = append(s.targets, bpf.Target{Cookie: t.ID.Cookie, Change: c}), append(s.at, i)
	}
	for netns, s := range bySpace {
		if b.spaces[netns] == nil || !b.ready() {
			left = append(left, s.at...)
			continue
		}
		told := make([]bool, len(s.at))
		err := b.changer.Apply(ctx, b.spaces[netns].ns, s.targets, func(k int, r bpf.Result) {
			// A socket that is closed is in no table, though a descriptor may
			// hold it.
			if told[k] = r.Found || r.Err != nil; told[k] {
				report(s.at[k], r)
			}
		})
		b.refused = b.refused || err != nil
		for k, i := range s.at {
			if !told[k] {
				left = append(left, i)
			}
		}
	}
	return left
}

// ready loads the program.
func (b *bpfTransport) ready() bool {
	if b.changer == nil && !b.refused {
		var err error
		b.changer, err = bpf.OpenChanger(b.sockets)
		b.refused = err != nil
	}
	return !b.refused
}
