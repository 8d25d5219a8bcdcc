package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
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

// benchAttachOnly makes n connections for that.
func (o options) benchAttachOnly(ctx context.Context, n int) (err error) {
	fmt.Fprintf(os.Stderr, "making %d connections\n", n)
	l, err := newLab(ctx, o, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	return o.benchAttach(l, n)
}

// benchAttach gives every connection a policy and takes it back, several
// times, and prints how long that takes: the changes alone, what was there
// saved, and the whole commands, which also find the connections, keep a
// journal and print a table.
func (o options) benchAttach(l *lab, n int) error {
	rows := []struct {
		what string
		argv []string
		took bool // it prints the time itself
		goal string
	}{
		{"bare netlink dump (" + o.bareIs + ")", o.bare, false, ""},
		{"the changes alone, by BPF", []string{o.self, role, "apply", "bpf"}, true, "1.2"},
		{"loading the program for that", []string{o.self, role, "apply", "load"}, true, ""},
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
	bare := median(times[0])
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
		took, err = applyBPF(ctx, snap, false)
	case "load":
		took, err = applyBPF(ctx, snap, true)
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

// applyBPF changes the connections if they are as they were seen, and restores
// them. It gives the time of the changes, or that of loading the program.
func applyBPF(ctx context.Context, snap *engine.Snapshot, loading bool) (_ time.Duration, err error) {
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	defer func() { _ = ns.Close() }()
	list := make([]bpf.Target, 0, snap.Len())
	for c := range snap.All() {
		list = append(list, bpf.Target{Cookie: c.Sock.Cookie, Change: bpf.Change{
			Op: bpf.Set, Settings: keepalive.Settings{KeepAlive: true, Policy: quiet()}, Conditional: true, Was: c.Settings,
		}})
	}
	start := time.Now()
	changer, err := bpf.OpenChanger(len(list))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, changer.Close()) }()
	if loading {
		return time.Since(start), nil
	}
	apply := func() (took time.Duration, err error) {
		start := time.Now()
		var failed error
		err = changer.Apply(ctx, ns, list, func(i int, r bpf.Result) {
			if !r.Found || r.Err != nil {
				failed = fmt.Errorf("connection %d: found %v: %w", list[i].Cookie, r.Found, r.Err)
			}
			list[i].Change = bpf.Change{Op: bpf.Restore, Settings: r.Before.Settings}
		})
		return time.Since(start), errors.Join(err, failed)
	}
	took, err := apply()
	if err == nil {
		_, err = apply()
	}
	return took, err
}

// applyDuplicates takes a duplicate to read what is there, and another to
// change it: between the two the journal is written. As deadpeer does, it has
// two workers.
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
	takers := [...]*held.Taker{held.New(), held.New()}
	defer held.Spare(len(takers))()
	each := func(do func(t *target, fd uintptr) error) error {
		var errs [len(takers)]error
		var wg sync.WaitGroup
		for w, taker := range takers {
			part := list[w*len(list)/len(takers) : (w+1)*len(list)/len(takers)]
			wg.Go(func() {
				for i := range part {
					t := &part[i]
					s, refusal := taker.Take(t.cookie, t.owners)
					if refusal != held.None {
						errs[w] = fmt.Errorf("connection %d: %w", t.cookie, refusal)
						return
					}
					err := do(t, uintptr(s.FD))
					taker.Give(s)
					if err != nil {
						errs[w] = fmt.Errorf("connection %d: %w", t.cookie, err)
						return
					}
				}
			})
		}
		wg.Wait()
		return errors.Join(errs[:]...)
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
	if err == nil {
		err = each(func(t *target, fd uintptr) error { return keepalive.RestoreFD(fd, t.was) })
	}
	for _, t := range takers {
		t.Close()
	}
	return took, err
}
