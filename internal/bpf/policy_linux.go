package bpf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/jiffies"
	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

// Changer is the loaded program that changes sockets. Not safe for concurrent
// use. Close it.
type Changer struct {
	hz       int64
	objects  policyObjects
	capacity int
	table    []policyPlace
	changes  []policyChange
	results  []policyResult
}

// maxCapacity bounds the memory that a Changer takes of the kernel, to some
// 50 MB.
const maxCapacity = 1 << 19

// OpenChanger loads the program (some 20 ms) for as many sockets in one walk
// as are to be changed. More are changed in several.
func OpenChanger(sockets int) (*Changer, error) {
	c := &Changer{hz: int64(jiffies.HZ()), capacity: min(max(sockets, 1), maxCapacity)}
	c.table = make([]policyPlace, tableLen(c.capacity))
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("load the program that changes sockets: %w", err)
	}
	return c, nil
}

func (c *Changer) open() (err error) {
	spec, err := loadPolicy()
	if err != nil {
		return err
	}
	spec.Maps[policyMapTable].MaxEntries = uint32(len(c.table))
	spec.Maps[policyMapChanges].MaxEntries = uint32(c.capacity)
	spec.Maps[policyMapResults].MaxEntries = uint32(c.capacity)
	if err := errors.Join(
		spec.Variables[policyVarHz].Set(uint32(c.hz)), spec.Variables[policyVarMask].Set(uint32(len(c.table)-1)),
	); err != nil {
		return err
	}
	return load(spec, &c.objects)
}

// Close unloads the program.
func (c *Changer) Close() error { return c.objects.Close() }

// Apply makes changes to sockets of a network namespace, each named once, and
// reports the result of each, in any order. It costs a walk through all sockets
// of the host. A socket is locked from the reading of Result.Before to its last
// change, so that neither its timers nor its program can come between. One that
// never was there, or is gone, is not Found.
//
// A Change that package keepalive would refuse is a Result.Err. After an error
// of Apply itself some sockets may have been changed; those not reported were
// not. Apply writes no journal: what the sockets have must be on disk before,
// from Look, or from elsewhere with Change.Was.
func (c *Changer) Apply(ctx context.Context, ns *netns.NS, targets []Target, report func(i int, r Result)) error {
	todo := make([]int, 0, len(targets))
	for i, t := range targets {
		if err := t.Change.check(); err != nil {
			report(i, Result{Err: err})
		} else {
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		part := todo[:min(c.capacity, len(todo))]
		crowded, err := c.fill(targets, part)
		if err == nil {
			err = ns.Do(func() error { return walkAll(ctx, c.objects.Policy) })
			// Of a walk that was cut short some may have been changed.
			err = errors.Join(err, c.read(targets, part, crowded, err == nil, report))
		}
		if err != nil {
			return fmt.Errorf("change sockets: %w", err)
		}
		todo = append(todo[len(part):], crowded...)
	}
	return nil
}

// fill hands the changes over to the program. Those whose place in the table
// is too far from where it is looked for are crowded out.
func (c *Changer) fill(targets []Target, part []int) (crowded []int, err error) {
	clear(c.table)
	c.changes = c.changes[:0]
	known := map[Change]uint32{}
	var last Change // neighbours are alike
	var at uint32
	for n, i := range part {
		t := &targets[i]
		if t.Change != last || n == 0 {
			var ok bool
			if at, ok = known[t.Change]; !ok {
				at = uint32(len(c.changes))
				c.changes = append(c.changes, t.Change.raw())
				known[t.Change] = at
			}
			last = t.Change
		}
		if !c.place(policyPlace{Cookie: t.Cookie, Change: at, Target: uint32(n)}) {
			crowded = append(crowded, i)
		}
	}
	return crowded, errors.Join(
		store(c.objects.Table, c.table), store(c.objects.Changes, c.changes), c.objects.Count.Set(uint32(0)),
	)
}

// place puts a socket into the table.
func (c *Changer) place(p policyPlace) bool {
	n, ok := findPlace(len(c.table), p.Cookie, func(n int) bool { return c.table[n].Cookie == 0 })
	if ok {
		c.table[n] = p
	}
	return ok
}

// read reports the results, and after a whole walk the sockets that were not
// visited, but for the crowded.
func (c *Changer) read(targets []Target, part, crowded []int, whole bool, report func(i int, r Result)) error {
	var count uint32
	if err := c.objects.Count.Get(&count); err != nil {
		return err
	}
	c.results = slices.Grow(c.results[:0], c.capacity)[:min(int(count), c.capacity)]
	memory, err := c.objects.Results.Memory()
	if err == nil && count > 0 {
		_, err = memory.ReadAt(bytesOf(c.results), 0)
	}
	if err != nil {
		return err
	}
	told := make([]bool, len(part))
	var raw rawSettings
	var before Settings // what raw was made into: neighbours are alike
	for n := range c.results {
		r := &c.results[n]
		if int(r.Target) >= len(part) {
			return fmt.Errorf("the program tells of socket %d of %d", r.Target, len(part))
		}
		told[r.Target] = true
		if got := rawSettings(r.Before); got != raw || before == (Settings{}) {
			raw, before = got, got.settings(c.hz)
		}
		i := part[r.Target]
		report(i, targets[i].Change.result(r, before))
	}
	for n, i := range part {
		if len(crowded) > 0 && crowded[0] == i {
			crowded = crowded[1:]
		} else if whole && !told[n] {
			report(i, Result{})
		}
	}
	return nil
}

// check refuses what no socket can be given.
func (c Change) check() error {
	s := c.Settings
	if c.Op > Restore {
		return fmt.Errorf("no op %d", c.Op)
	}
	if c.Op == Set {
		if err := s.ValidateFor("linux"); err != nil {
			return err
		}
	}
	if s.Idle > math.MaxInt32*time.Second || s.Interval > math.MaxInt32*time.Second || s.Probes > math.MaxUint8 ||
		s.UserTimeout > math.MaxInt32*time.Millisecond {
		return fmt.Errorf("settings %+v: no socket can have them", s)
	}
	return nil
}

// raw gives what the program takes.
func (c Change) raw() policyChange {
	s, was := c.Settings, c.Was
	raw := policyChange{
		Op: uint8(c.Op), Idle: uint32(whole(s.Idle, time.Second)), Interval: uint32(whole(s.Interval, time.Second)),
		Probes: uint8(max(s.Probes, 0)), UserTimeoutMs: -1,
	}
	if s.KeepAlive {
		raw.Keepalive = 1
	}
	if s.UserTimeout >= 0 {
		raw.UserTimeoutMs = int32(whole(s.UserTimeout, time.Millisecond))
	}
	if c.Conditional {
		raw.Conditional = 1
		raw.WasIdle, raw.WasInterval = uint32(was.Idle/time.Second), uint32(was.Interval/time.Second)
		raw.WasProbes, raw.WasUserTimeoutMs = uint8(was.Probes), uint32(was.UserTimeout/time.Millisecond)
		if was.KeepAlive {
			raw.WasKeepalive = 1
		}
	}
	return raw
}

func (c Change) result(raw *policyResult, before Settings) Result {
	r := Result{Found: true, Before: before}
	switch {
	case raw.Differs != 0:
		r.Err = ErrDiffers
	case raw.Failed != 0:
		r.Err = errors.New("it does not have what it was given back")
	case raw.Error != 0:
		// The program refuses what the settings it leaves alone make fatal.
		if c.Op == Set {
			if r.Err = together(c.Settings.Policy, before.Policy).ValidateFor("linux"); r.Err != nil {
				return r
			}
		}
		r.Err = fmt.Errorf("set socket options: %w", unix.Errno(-raw.Error))
	}
	return r
}

// together is p with what it leaves alone as it was.
func together(p, was keepalive.Policy) keepalive.Policy {
	if p.Idle == 0 {
		p.Idle = was.Idle
	}
	if p.Interval == 0 {
		p.Interval = was.Interval
	}
	if p.Probes == 0 {
		p.Probes = was.Probes
	}
	if p.UserTimeout < 0 {
		p.UserTimeout = was.UserTimeout
	}
	return p
}
