// Heartbeat measures package heartbeat side by side with what people write
// today, a goroutine and a time.Ticker for each target: memory over the
// targets themselves, CPU, and by how much pings come late. Pings are in
// memory and answered at once. Every run is a process of its own, which adds
// its targets over one period and measures the next one. Beside it stands by
// how much an idle process was late meanwhile: less than that nobody can be on
// this machine. It asserts nothing.
//
// Linux; no privileges. On a busy machine look at ratios.
//
//	go run ./test/bench/heartbeat -n 10000,100000,1000000 -period 30s
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/heartbeat"
)

// role is the first argument of the processes that measure.
const role = "as"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) == 5 && os.Args[1] == role {
		n, nErr := strconv.Atoi(os.Args[3])
		period, err := time.ParseDuration(os.Args[4])
		if err != nil || nErr != nil {
			return fmt.Errorf("bad arguments %q", os.Args[3:])
		}
		return measure(ctx, os.Args[2], n, period)
	}
	numbers := flag.String("n", "10000,100000,1000000", "numbers of targets")
	period := flag.Duration("period", 30*time.Second, "period of the pings")
	flag.Parse()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "period %v\tRSS per target\tCPU\tscheduling error p50\tp99\tmax\tpings\tidle process p99\tmax\n", *period)
	for word := range strings.SplitSeq(*numbers, ",") {
		for _, how := range []string{"heartbeat", "ticker"} {
			var out bytes.Buffer
			cmd := exec.CommandContext(ctx, self, role, how, word, period.String())
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			noise := listen()
			err := cmd.Run()
			p99, worst := noise()
			if err != nil {
				return fmt.Errorf("measure %s with %s targets: %w", how, word, err)
			}
			fmt.Fprintf(w, "%s %s\t%s\t%v\t%v\n", word, how, out.String(), p99, worst)
		}
	}
	fmt.Fprintf(w, "goals at 1000000\t≤ 200 B\t≤ 25 %%\t\t≤ 10 ms\t\t\t\t\n")
	return w.Flush()
}

// listen wakes up every 10 ms and notes how late, until it is asked.
func listen() (stop func() (p99, worst time.Duration)) {
	m := &meter{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for due := time.Now(); sleep(ctx, time.Until(due)) == nil; due = time.Now().Add(10 * time.Millisecond) {
			m.add(time.Since(due))
		}
	}()
	return func() (p99, worst time.Duration) {
		cancel()
		<-done
		p99, _ = m.quantile(0.99)
		worst, _ = m.quantile(1)
		return p99, worst
	}
}

// target answers at once. It measures how far apart its pings are.
type target struct {
	last int64 // when it was pinged, on the monotonic clock
	m    *meter
}

// Ping is in memory.
func (t *target) Ping(context.Context) error {
	now := int64(time.Since(t.m.start))
	if last := t.last; last != 0 && t.m.on.Load() {
		t.m.add(time.Duration(now - last - int64(t.m.period)))
	}
	t.last = now
	return nil
}

// meter counts scheduling errors in steps of 0.1 ms.
type meter struct {
	start  time.Time
	period time.Duration
	on     atomic.Bool
	counts [10_000]atomic.Uint32
}

func (m *meter) add(d time.Duration) {
	m.counts[min(int(d.Abs()/(100*time.Microsecond)), len(m.counts)-1)].Add(1)
}

func (m *meter) quantile(q float64) (d time.Duration, total uint64) {
	for i := range m.counts {
		total += uint64(m.counts[i].Load())
	}
	seen := uint64(0)
	for i := range m.counts {
		if seen += uint64(m.counts[i].Load()); seen > 0 && float64(seen) >= q*float64(total) {
			return time.Duration(i+1) * 100 * time.Microsecond, total
		}
	}
	return 0, total
}

// measure prints a row of the table.
func measure(ctx context.Context, how string, n int, period time.Duration) error {
	m := &meter{start: time.Now(), period: period}
	targets := make([]target, n)
	for i := range targets {
		targets[i].m = m // touches the page
	}
	before, err := rss()
	if err != nil {
		return err
	}
	var add func(t *target)
	switch how {
	case "heartbeat":
		monitor := heartbeat.New(heartbeat.Options{Period: period, Jitter: -1, Observer: heartbeat.Observers()})
		if err := monitor.Start(ctx); err != nil {
			return err
		}
		add = func(t *target) { monitor.Add("target", t) }
	case "ticker":
		add = func(t *target) {
			go func() {
				ticker := time.NewTicker(period)
				defer ticker.Stop()
				for {
					select {
					case <-ctx.Done():
						return
					case <-ticker.C:
						_ = t.Ping(ctx) // always nil
					}
				}
			}()
		}
	default:
		return fmt.Errorf("no way %q", how)
	}
	begin := time.Now()
	for i := range targets {
		if i%64 == 0 { // spread over one period
			time.Sleep(time.Until(begin.Add(period * time.Duration(i) / time.Duration(n))))
		}
		add(&targets[i])
	}
	// Their first pings give the second ones something to count from.
	if err := sleep(ctx, period+time.Second); err != nil {
		return err
	}
	m.on.Store(true)
	cpuBefore, err := cpu()
	if err != nil {
		return err
	}
	if err := sleep(ctx, period); err != nil {
		return err
	}
	cpuAfter, err := cpu()
	if err != nil {
		return err
	}
	m.on.Store(false)
	after, err := rss()
	if err != nil {
		return err
	}
	p50, _ := m.quantile(0.5)
	p99, total := m.quantile(0.99)
	worst, _ := m.quantile(1)
	fmt.Printf("%d B\t%.1f %%\t%v\t%v\t%v\t%d", (after-before)/n,
		100*float64(cpuAfter-cpuBefore)/float64(period), p50, p99, worst, total)
	runtime.KeepAlive(targets)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// rss is the resident memory, after a collection.
func rss() (int, error) {
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0, fmt.Errorf("read /proc/self/statm: %q", statm)
	}
	pages, err := strconv.Atoi(fields[1])
	return pages * os.Getpagesize(), err
}

// cpu is the time this process has used.
func cpu() (time.Duration, error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, err
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}
