package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/jiffies"
	"deadpeer/internal/netns"
)

// Ender is the loaded program that ends sockets. Not safe for concurrent use.
// Close it.
type Ender struct {
	objects endObjects
	table   []endPlace
	hz      float64
}

// longest is what 31 bits of jiffies hold at any HZ.
const longest = 20 * 24 * time.Hour

// OpenEnder loads the program (some 20 ms) for as many sockets in one walk as
// are to be ended. More are ended in several. Needs Linux 6.5
// (bpf_sock_destroy).
func OpenEnder(sockets int) (*Ender, error) {
	e := &Ender{table: make([]endPlace, tableLen(min(max(sockets, 1), maxCapacity))), hz: float64(jiffies.HZ())}
	spec, err := loadEnd()
	if err == nil {
		spec.Maps[endMapTable].MaxEntries = uint32(len(e.table))
		err = spec.Variables[endVarMask].Set(uint32(len(e.table) - 1))
	}
	if err == nil {
		err = load(spec, &e.objects)
	}
	if err != nil {
		return nil, fmt.Errorf("load the program that ends sockets: %w", err)
	}
	return e, nil
}

// Close unloads the program.
func (e *Ender) Close() error { return e.objects.Close() }

// End ends those sockets of a network namespace, each named once, that have
// received as many segments as Silent says and nothing for as long, with
// ECONNABORTED and a reset to the peer (tcp_abort), and reports what came of
// each, in any order. It costs a walk through all sockets of the host. A socket
// is locked from the comparison to its end: nothing that has arrived is
// overlooked. One that is not there, or is no full socket, is NotFound. After an
// error some may have been ended; those not reported were not.
func (e *Ender) End(ctx context.Context, ns *netns.NS, list []Silent, report func(i int, o Ending, err error)) error {
	todo := make([]int, len(list))
	for i := range todo {
		todo[i] = i
	}
	for len(todo) > 0 {
		part := todo[:min(len(e.table)/2, len(todo))]
		clear(e.table)
		at := make([]int, len(e.table)) // which of the list is there, plus one
		var crowded []int
		for _, i := range part {
			place, ok := findPlace(len(e.table), list[i].Cookie, func(n int) bool { return e.table[n].Cookie == 0 })
			if !ok {
				crowded = append(crowded, i)
				continue
			}
			e.table[place] = endPlace{
				Cookie: list[i].Cookie, SegsIn: list[i].SegsIn,
				Silence: uint32(min(max(0, list[i].For), longest).Seconds() * e.hz),
			}
			at[place] = i + 1
		}
		err := store(e.objects.Table, e.table)
		if err == nil {
			err = ns.Do(func() error { return walkAll(ctx, e.objects.End) })
			err = errors.Join(err, e.read(at, err == nil, report))
		}
		if err != nil {
			return fmt.Errorf("end sockets: %w", err)
		}
		todo = append(todo[len(part):], crowded...)
	}
	return nil
}

// read reports what came of the walk, and after a whole one what was not found.
func (e *Ender) read(at []int, whole bool, report func(i int, o Ending, err error)) error {
	memory, err := e.objects.Table.Memory()
	if err == nil {
		_, err = memory.ReadAt(bytesOf(e.table), 0)
	}
	if err != nil {
		return err
	}
	for n, i := range at {
		switch p := e.table[n]; {
		case i == 0:
		case p.Outcome == uint16(Refused):
			report(i-1, Refused, unix.Errno(-p.Error))
		case p.Outcome != uint16(NotFound) || whole:
			report(i-1, Ending(p.Outcome), nil)
		}
	}
	return nil
}
