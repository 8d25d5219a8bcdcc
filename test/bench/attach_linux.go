package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/held"
	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

// quiet is a policy that has no idle connection probed at once.
func quiet() keepalive.Policy {
	return keepalive.Policy{Idle: time.Hour, Interval: time.Minute, Probes: 9, UserTimeout: -1}
}

// benchAttach gives every connection a policy and takes it back, several
// times, and prints how long that takes: the changes alone, what was there
// saved, and the whole commands, which also find the connections, keep a
// journal and print a table.
func (o options) benchAttach(l *lab, n int, bare time.Duration) error {
	rows := []struct {
		what string
		argv []string
		took bool // it prints the time itself
		goal string
	}{
		{"the changes alone, by BPF", []string{o.self, role, "apply", "bpf"}, true, "1.2"},
		{"the changes alone, by pidfd_getfd", []string{o.self, role, "apply", "pidfd"}, true, "9.0"},
		{"deadpeer attach", []string{o.deadpeer, "attach", "--idle", "1h", "--interval", "1m", "--probes", "9"}, false, ""},
		{"deadpeer detach", []string{o.deadpeer, "detach"}, false, ""},
		{"deadpeer attach --no-bpf", []string{o.deadpeer, "attach", "--no-bpf", "--idle", "1h", "--interval", "1m", "--probes", "9"}, false, ""},
		{"deadpeer detach --no-bpf", []string{o.deadpeer, "detach", "--no-bpf"}, false, ""},
	}
	times, notes := make([][]time.Duration, len(rows)), make([]error, len(rows))
	for range o.checks {
		for i, r := range rows {
			result, err := l.tell(order{Run: r.argv, Want: r.took})
			if r.took && err == nil {
				var ns int64
				ns, err = strconv.ParseInt(strings.TrimSpace(string(result.Output)), 10, 64)
				result.Wall = time.Duration(ns)
			}
			if err != nil {
				notes[i] = err
				continue
			}
			times[i] = append(times[i], result.Wall)
		}
	}
	fmt.Printf("\na policy for every connection, and back; medians of %d runs\n", o.checks)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tms\tns/connection\tx bare\tgoal\t")
	for i, r := range rows {
		if notes[i] != nil {
			fmt.Fprintf(w, "%s\tnot measured: %v\t\t\t\t\n", r.what, notes[i])
			continue
		}
		took := median(times[i])
		fmt.Fprintf(w, "%s\t%.1f\t%d\t%.2f\t%s\t\n", r.what, ms(took), took.Nanoseconds()/int64(n), float64(took)/float64(bare), r.goal)
	}
	return w.Flush()
}

// timeApply gives every connection a policy, prints how long that took, and
// restores what they had.
func timeApply(ctx context.Context, args []string) error {
	snap, err := engine.New(engine.Options{}).Scan(ctx, engine.Request{})
	if err != nil {
		return err
	}
	var took time.Duration
	switch args[0] {
	case "bpf":
		took, err = applyBPF(ctx, snap)
	case "pidfd":
		took, err = applyDuplicates(snap)
	default:
		return fmt.Errorf("no way %q to change connections", args[0])
	}
	if err == nil {
		fmt.Println(took.Nanoseconds())
	}
	return err
}

// applyBPF counts loading the program in.
func applyBPF(ctx context.Context, snap *engine.Snapshot) (time.Duration, error) {
	policy := bpf.Change{Op: bpf.Set, Settings: keepalive.Settings{KeepAlive: true, Policy: quiet()}}
	changes := make(map[uint64]bpf.Change, snap.Len())
	for c := range snap.All() {
		changes[c.Sock.Cookie] = policy
	}
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	defer func() { _ = ns.Close() }()
	start := time.Now()
	results, err := bpf.Apply(ctx, ns, changes)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	for cookie, r := range results {
		if !r.Found || r.Err != nil {
			return 0, fmt.Errorf("connection %d: found %v: %w", cookie, r.Found, r.Err)
		}
		changes[cookie] = bpf.Change{Op: bpf.Restore, Settings: r.Before.Settings}
	}
	if _, err := bpf.Apply(ctx, ns, changes); err != nil {
		return 0, errors.Join(errors.New("restore"), err)
	}
	return took, nil
}

// applyDuplicates takes a duplicate to read what is there, and another to
// change it: between the two the journal is written.
func applyDuplicates(snap *engine.Snapshot) (time.Duration, error) {
	type target struct {
		cookie uint64
		owners []conn.Owner
		was    keepalive.Settings
	}
	list := make([]target, 0, snap.Len())
	for c := range snap.All() {
		list = append(list, target{cookie: c.Sock.Cookie, owners: append([]conn.Owner(nil), c.Owners...)})
	}
	taker := held.New()
	defer taker.Close()
	each := func(do func(t *target, fd uintptr) error) error {
		for i := range list {
			t := &list[i]
			s, refusal := taker.Take(t.cookie, t.owners)
			if refusal != held.None {
				return fmt.Errorf("connection %d: %w", t.cookie, refusal)
			}
			err := do(t, uintptr(s.FD))
			taker.Give(s)
			if err != nil {
				return fmt.Errorf("connection %d: %w", t.cookie, err)
			}
		}
		return nil
	}
	start := time.Now()
	err := each(func(t *target, fd uintptr) (err error) {
		t.was, err = keepalive.GetFD(fd)
		return err
	})
	if err == nil {
		err = each(func(_ *target, fd uintptr) error { return keepalive.SetFD(fd, quiet()) })
	}
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	return took, each(func(t *target, fd uintptr) error { return keepalive.RestoreFD(fd, t.was) })
}
