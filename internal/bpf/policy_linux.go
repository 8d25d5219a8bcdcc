package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

// Apply makes changes to the sockets of a network namespace, by cookie, and
// tells the result of each. It costs a walk through all sockets of the host,
// and loading the program (some 20 ms): for a few sockets that have a
// descriptor there are quicker ways. A socket is locked from the reading of
// Result.Before to its last change, so that neither its timers nor its program
// can come between. One that never was there, or is gone, is not Found.
//
// A Change that package keepalive would refuse is a Result.Err. An error of
// Apply itself may come after some sockets were changed; the results are those
// known. Apply writes no journal: Look first, and keep what that tells.
func Apply(ctx context.Context, ns *netns.NS, changes map[uint64]Change) (map[uint64]Result, error) {
	results := make(map[uint64]Result, len(changes))
	hz, err := ticks()
	if err != nil {
		return results, fmt.Errorf("change sockets: read the kernel's tick rate: %w", err)
	}
	keys, values := make([]uint64, 0, len(changes)), make([]policyChange, 0, len(changes))
	for cookie, c := range changes {
		raw, err := c.raw()
		if err != nil {
			results[cookie] = Result{Err: err}
			continue
		}
		keys, values = append(keys, cookie), append(values, raw)
	}
	if len(keys) == 0 {
		return results, nil
	}
	objects, err := loadChanges(hz, keys, values)
	if err != nil {
		return results, fmt.Errorf("change sockets: %w", err)
	}
	ran := ns.Do(func() error { return runPolicy(ctx, objects.Policy) })
	err = errors.Join(ran, readChanges(objects.Changes, len(keys), func(cookie uint64, raw *policyChange) {
		results[cookie] = changes[cookie].result(raw, hz)
	}), objects.Close())
	if err != nil {
		return results, fmt.Errorf("change sockets: %w", err)
	}
	return results, nil
}

// loadChanges loads the program with a map of the changes.
func loadChanges(hz int64, keys []uint64, values []policyChange) (*policyObjects, error) {
	spec, err := loadPolicy()
	if err != nil {
		return nil, err
	}
	spec.Maps[policyMapChanges].MaxEntries = uint32(len(keys))
	if err := spec.Variables[policyVarHz].Set(uint32(hz)); err != nil {
		return nil, err
	}
	var o policyObjects
	if err := load(spec, &o); err != nil {
		return nil, err
	}
	if _, err := o.Changes.BatchUpdate(keys, values, nil); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return &o, nil
}

// runPolicy visits the sockets of the calling thread's network namespace.
func runPolicy(ctx context.Context, p *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return explain(err)
	}
	in, err := it.Open()
	if err != nil {
		return errors.Join(explain(err), it.Close())
	}
	err = readIter(ctx, in, func([]byte) ([]byte, error) { return nil, nil })
	return errors.Join(err, closeAll(in, it))
}

func closeAll(list ...io.Closer) error {
	var errs []error
	for _, c := range list {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// readChanges visits all that the map holds.
func readChanges(m *ebpf.Map, n int, visit func(uint64, *policyChange)) error {
	const batch = 4096
	keys, values := make([]uint64, min(n, batch)), make([]policyChange, min(n, batch))
	for cursor := new(ebpf.MapBatchCursor); ; {
		got, err := m.BatchLookup(cursor, keys, values, nil)
		switch {
		case errors.Is(err, unix.ENOSPC) && len(keys) < n: // a bucket holds more
			keys, values = make([]uint64, n), make([]policyChange, n)
			continue
		case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
			return fmt.Errorf("read results: %w", err)
		}
		for i := range got {
			visit(keys[i], &values[i])
		}
		if err != nil {
			return nil // it was the last batch
		}
	}
}

// raw checks a change and gives what the program takes.
func (c Change) raw() (policyChange, error) {
	s := c.Settings
	if c.Op > Restore {
		return policyChange{}, fmt.Errorf("no op %d", c.Op)
	}
	if c.Op == Set {
		if err := s.ValidateFor("linux"); err != nil {
			return policyChange{}, err
		}
	}
	if s.Idle > math.MaxInt32*time.Second || s.Interval > math.MaxInt32*time.Second || s.Probes > math.MaxUint8 ||
		s.UserTimeout > math.MaxInt32*time.Millisecond {
		return policyChange{}, fmt.Errorf("settings %+v: no socket can have them", s)
	}
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
	return raw, nil
}

func (c Change) result(raw *policyChange, hz int64) Result {
	if raw.Done == 0 {
		return Result{}
	}
	r := Result{Found: true, Before: rawSettings(raw.Before).settings(hz)}
	if raw.Error == 0 {
		return r
	}
	// The program refuses what the settings it leaves alone make fatal.
	if c.Op == Set {
		if r.Err = together(c.Settings.Policy, r.Before.Policy).ValidateFor("linux"); r.Err != nil {
			return r
		}
	}
	r.Err = fmt.Errorf("set socket options: %w", unix.Errno(-raw.Error))
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
