package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one program measured.
type row struct {
	what string
	argv []string
	cli  []string // the arguments, when it is deadpeer
	goal float64  // times the bare dump, 0 for none
	note string   // why it was not measured
	wall []time.Duration
	heap string // allocations a connection
	peak int64
}

// bench measures at n connections and prints the table.
func (o options) bench(ctx context.Context, n int) (err error) {
	fmt.Fprintf(os.Stderr, "making %d connections\n", n)
	l, err := newLab(ctx, o, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	rows := o.rows(n)
	for range o.runs {
		for i := range rows {
			if err := rows[i].time(l); err != nil {
				return err
			}
		}
	}
	for i := range rows {
		if err := o.weigh(l, &rows[i], n); err != nil {
			return err
		}
	}
	if err := o.benchAttach(l, n); err != nil {
		return err
	}
	base, err := l.tell(order{Run: []string{o.deadpeer, "scan", "--no-owners", "sport", "=", ":1"}, Peak: true})
	if err != nil {
		return err
	}
	if err := l.links[1].Cut(); err != nil {
		return err
	}
	check := row{what: "deadpeer check, half dead", argv: []string{o.deadpeer, "check"}, cli: []string{"check"}}
	var inside []checked
	for range o.checks {
		if err := check.time(l); err != nil {
			return err
		}
		r, err := l.tell(order{Run: []string{o.self, role, "check", strconv.Itoa(n), l.dead.String()}, Want: true})
		if err != nil {
			return err
		}
		var c checked
		if err := json.Unmarshal(r.Output, &c); err != nil {
			return fmt.Errorf("read result of check: %w", err)
		}
		inside = append(inside, c)
	}
	if err := o.weigh(l, &check, n); err != nil {
		return err
	}
	one, err := l.tell(order{Run: []string{o.self, role, "one", l.dead.String()}, Want: true})
	if err != nil {
		return err
	}
	life, err := strconv.ParseInt(string(one.Output), 10, 64)
	if err != nil {
		return fmt.Errorf("read result of one check: %w", err)
	}
	o.print(n, append(rows, check), base.Peak, inside, time.Duration(life))
	return nil
}

func (o options) rows(n int) []row {
	deadpeer := func(goal float64, args ...string) row {
		return row{what: "deadpeer " + strings.Join(args, " "), argv: append([]string{o.deadpeer}, args...), cli: args, goal: goal}
	}
	ss := func(flags string) row {
		r := row{what: "ss " + flags, argv: []string{o.ss, flags}}
		switch {
		case o.ss == "":
			r.note = "not installed (Debian: iproute2)"
		case flags == "-tnpH" && n > 20_000 && !o.ssProcesses:
			r.note = "left out: -ss-processes"
		}
		return r
	}
	return []row{
		{what: "bare netlink dump (" + o.bareIs + ")", argv: o.bare},
		ss("-tnH"), ss("-tnoiH"),
		deadpeer(1.6, "scan", "--no-owners"), deadpeer(0, "scan", "--no-owners", "-o", "jsonl"),
		ss("-tnpH"),
		deadpeer(5, "scan", "--no-bpf"), deadpeer(1.5, "scan"), deadpeer(0, "scan", "-o", "jsonl"),
	}
}

// time runs the program once.
func (r *row) time(l *lab) error {
	if r.note != "" {
		return nil
	}
	result, err := l.tell(order{Run: r.argv})
	r.wall = append(r.wall, result.Wall)
	return err
}

// weigh measures memory and allocations, in runs of their own.
func (o options) weigh(l *lab, r *row, n int) error {
	if r.note != "" {
		return nil
	}
	result, err := l.tell(order{Run: r.argv, Peak: true})
	if err != nil {
		return err
	}
	if r.peak, r.heap = result.Peak, "-"; r.cli == nil {
		return nil
	}
	result, err = l.tell(order{Run: append([]string{o.self, role, "cli"}, r.cli...), Want: true})
	if err != nil {
		return err
	}
	count, err := strconv.ParseInt(strings.TrimSpace(string(result.Output)), 10, 64)
	if err != nil {
		return fmt.Errorf("read number of allocations: %w", err)
	}
	r.heap = strconv.FormatFloat(float64(count)/float64(n), 'f', 2, 64)
	return nil
}

func (o options) print(n int, rows []row, base int64, checks []checked, life time.Duration) {
	const mb = 1e6
	load, _ := os.ReadFile("/proc/loadavg") // only for information
	keepalive := "off"
	if o.keepalive {
		keepalive = "on"
	}
	fmt.Printf("\n%d idle connections, keepalive %s, 2 x %d peer addresses, %d processes, %d CPUs; medians of %d runs; load %s\n",
		n, keepalive, aliases, len(split(n, perHolder)), runtime.NumCPU(), o.runs, load)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tms\tns/connection\tx bare\tgoal\tallocs/connection\tmax RSS MB\tgoal MB\tB/connection over base\t")
	bare := median(rows[0].wall)
	for _, r := range rows {
		if r.note != "" {
			fmt.Fprintf(w, "%s\t%s\t\t\t\t\t\t\t\t\n", r.what, r.note)
			continue
		}
		wall := median(r.wall)
		goal, memory, each := "", "", ""
		if r.goal > 0 {
			goal = fmt.Sprintf("%.1f", r.goal)
		}
		if r.cli != nil {
			memory = fmt.Sprintf("%.1f", 10+200*float64(n)/mb)
			each = strconv.FormatInt((r.peak-base)/int64(n), 10)
		}
		fmt.Fprintf(w, "%s\t%.1f\t%d\t%.2f\t%s\t%s\t%.1f\t%s\t%s\t\n", r.what, ms(wall), wall.Nanoseconds()/int64(n),
			float64(wall)/float64(bare), goal, r.heap, float64(r.peak)/mb, memory, each)
	}
	_ = w.Flush()
	fmt.Printf("\ndeadpeer without connections: %.1f MB\n", float64(base)/mb)
	middle := func(of func(checked) time.Duration) float64 {
		var list []time.Duration
		for _, c := range checks {
			list = append(list, of(c))
		}
		return ms(median(list))
	}
	wrong, undecided := 0, 0
	for _, c := range checks {
		wrong, undecided = wrong+c.Wrong, undecided+c.Undecided
	}
	proof := middle(func(c checked) time.Duration { return c.Proof })
	fmt.Printf("check, half dead, medians of %d: began to ask after %.0f ms; every living one answered for after %.0f ms (goal 1000);\n"+
		"every verdict after %.0f ms (goal %.0f: the proof of death needs %.0f here, and 1500); wrong verdicts %d (goal 0), undecided %d\n",
		len(checks), middle(func(c checked) time.Duration { return c.Asking }), middle(func(c checked) time.Duration { return c.Answered }),
		middle(func(c checked) time.Duration { return c.All }), proof+1500, proof, wrong, undecided)
	fmt.Printf("check of one living connection: alive %.2f ms after the beginning of asking (goal RTT + 1; RTT is about 0 here)\n", ms(life))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(list []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}
