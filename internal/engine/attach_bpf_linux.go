package engine

import (
	"context"

	"golang.org/x/sys/unix"

	"deadpeer/internal/attach"
	"deadpeer/internal/bpf"
	"deadpeer/keepalive"
)

// bpfFrom is from how many sockets on the BPF program is the cheaper way: it is
// loaded for each batch and walks through every socket of the host.
const bpfFrom = 4096

// bpfBatch sockets are changed in one walk.
const bpfBatch = 1 << 17

// means are those by which sockets are changed.
type means struct {
	transport  attach.Transport
	name       string
	batch      int                // 0 for the default
	duplicates *attach.Duplicates // for what is better done one by one
}

// means chooses by what n sockets are changed. Close them.
func (r *run) means(n int) means {
	d := attach.Getfd()
	from := bpfFrom
	if r.e.bpfFrom != 0 {
		from = r.e.bpfFrom
	}
	if r.e.options.NoBPF || n < from || !mayUseBPF() {
		return means{d, "pidfd_getfd", 0, d}
	}
	return means{&bpfTransport{Duplicates: d, spaces: r.spaces}, "BPF", bpfBatch, d}
}

func (m means) close() { m.duplicates.Close() }

// bpfTransport changes sockets by an iterator over all of a namespace. Those
// in a namespace that is not open, and all of them if the kernel does not take
// the program, are reached by their descriptors.
type bpfTransport struct {
	*attach.Duplicates
	spaces map[uint32]*space
}

// Look reads settings.
func (b *bpfTransport) Look(ctx context.Context, targets []attach.Target, report func(i int, s keepalive.Settings, err error)) {
	b.apply(ctx, targets, func(int) bpf.Change { return bpf.Change{Op: bpf.Look} }, func(i int, r bpf.Result, err error) {
		report(i, r.Before.Settings, err)
	}, func(part []attach.Target, at []int) {
		b.Duplicates.Look(ctx, part, func(n int, s keepalive.Settings, err error) { report(at[n], s, err) })
	})
}

// Set is what keepalive.SetFD does.
func (b *bpfTransport) Set(ctx context.Context, targets []attach.Target, policies []keepalive.Policy, report func(i int, err error)) {
	b.apply(ctx, targets, func(i int) bpf.Change {
		return bpf.Change{Op: bpf.Set, Settings: keepalive.Settings{KeepAlive: true, Policy: policies[i]}}
	}, func(i int, _ bpf.Result, err error) { report(i, err) }, func(part []attach.Target, at []int) {
		b.Duplicates.Set(ctx, part, pick(policies, at), func(n int, err error) { report(at[n], err) })
	})
}

// Restore is what keepalive.RestoreFD does.
func (b *bpfTransport) Restore(ctx context.Context, targets []attach.Target, settings []keepalive.Settings, report func(i int, err error)) {
	b.apply(ctx, targets, func(i int) bpf.Change {
		return bpf.Change{Op: bpf.Restore, Settings: settings[i]}
	}, func(i int, _ bpf.Result, err error) { report(i, err) }, func(part []attach.Target, at []int) {
		b.Duplicates.Restore(ctx, part, pick(settings, at), func(n int, err error) { report(at[n], err) })
	})
}

func pick[T any](all []T, at []int) []T {
	some := make([]T, len(at))
	for n, i := range at {
		some[n] = all[i]
	}
	return some
}

// apply makes the changes namespace by namespace, and has what it cannot reach
// done otherwise.
func (b *bpfTransport) apply(
	ctx context.Context, targets []attach.Target, change func(i int) bpf.Change,
	report func(i int, r bpf.Result, err error), otherwise func(part []attach.Target, at []int),
) {
	var left []int
	bySpace := map[uint32][]int{}
	for i, t := range targets {
		if b.spaces[t.ID.NetNS] == nil {
			left = append(left, i)
			continue
		}
		bySpace[t.ID.NetNS] = append(bySpace[t.ID.NetNS], i)
	}
	for netns, list := range bySpace {
		changes := make(map[uint64]bpf.Change, len(list))
		for _, i := range list {
			changes[targets[i].ID.Cookie] = change(i)
		}
		results, err := bpf.Apply(ctx, b.spaces[netns].ns, changes)
		for _, i := range list {
			r, known := results[targets[i].ID.Cookie]
			switch {
			case err != nil && !r.Found: // not visited, for all we know
				left = append(left, i)
			case !known || !r.Found && r.Err == nil:
				// A socket that is closed is in no table, though a descriptor may
				// hold it.
				left = append(left, i)
			default:
				report(i, r, r.Err)
			}
		}
	}
	if len(left) > 0 {
		otherwise(pick(targets, left), left)
	}
}

func mayUseBPF() bool {
	const needed = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
	return effective()&needed == needed
}
