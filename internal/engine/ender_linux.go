package engine

import (
	"context"

	"deadpeer/internal/bpf"
	"deadpeer/internal/netns"
	"deadpeer/internal/release"
)

// ender ends sockets of a network namespace by BPF. Whatever the kernel does
// not take, or the walk does not meet, it gives back.
type ender struct {
	ns    *netns.NS
	ended *int
}

// End implements release.Ender.
func (e ender) End(ctx context.Context, items []release.Item, outcome func(i int, err error)) (left []int) {
	var list []bpf.Silent
	var at []int
	for i, item := range items {
		if item.Any {
			left = append(left, i)
		} else {
			list, at = append(list, bpf.Silent{Cookie: item.Sock.Cookie, SegsIn: item.SegsIn, For: item.Silence()}), append(at, i)
		}
	}
	if len(list) == 0 {
		return left
	}
	told := make([]bool, len(list))
	if program, err := bpf.OpenEnder(len(list)); err == nil {
		defer func() { _ = program.Close() }() // it has no more to do
		// After an error those not reported are as they were.
		_ = program.End(ctx, e.ns, list, func(k int, o bpf.Ending, err error) {
			if o == bpf.Heard {
				err = release.ErrHeard
			}
			if o == bpf.Ended {
				*e.ended++
			}
			if told[k] = o != bpf.NotFound; told[k] {
				outcome(at[k], err)
			}
		})
	}
	for k, i := range at {
		if !told[k] {
			left = append(left, i)
		}
	}
	return left
}
