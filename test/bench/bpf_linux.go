package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/engine"
	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

// timeApply gives every connection a policy by BPF, prints how long that took,
// loading the program included, and restores what they had.
func timeApply(ctx context.Context) error {
	snap, err := engine.New(engine.Options{}).Scan(ctx, engine.Request{NoOwners: true})
	if err != nil {
		return err
	}
	policy := bpf.Change{Op: bpf.Set, Settings: keepalive.Settings{
		KeepAlive: true, Policy: keepalive.Policy{Idle: time.Hour, Interval: time.Minute, Probes: 9, UserTimeout: -1},
	}}
	changes := make(map[uint64]bpf.Change, snap.Len())
	for c := range snap.All() {
		changes[c.Sock.Cookie] = policy
	}
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	start := time.Now()
	results, err := bpf.Apply(ctx, ns, changes)
	took := time.Since(start)
	if err != nil {
		return err
	}
	for cookie, r := range results {
		if !r.Found || r.Err != nil {
			return fmt.Errorf("connection %d: found %v: %w", cookie, r.Found, r.Err)
		}
		changes[cookie] = bpf.Change{Op: bpf.Restore, Settings: r.Before.Settings}
	}
	if _, err := bpf.Apply(ctx, ns, changes); err != nil {
		return errors.Join(errors.New("restore"), err)
	}
	fmt.Println(took.Nanoseconds())
	return nil
}
