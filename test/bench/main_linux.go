// Bench measures deadpeer side by side with ss and with a bare netlink dump,
// on real idle connections between throw-away network namespaces: a server,
// and two peers of which one lies behind a link that gets cut. It prints one
// table for each number of connections, and asserts nothing: judge by the
// column of goals. Before that it measures package keepalive against package
// net, package wire against tcpdump, and what a hook on new connections costs
// an application.
//
// Linux, as root or where user namespaces are allowed. Times are medians of
// several runs taken in turn; on a busy machine look at ratios.
//
//	go run ./test/bench -n 10000,100000
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
)

// role is the first argument of the processes that the benchmark starts from
// its own binary.
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
	if len(os.Args) > 2 && os.Args[1] == role {
		switch what, args := os.Args[2], os.Args[3:]; what {
		case "agent":
			return agent(ctx)
		case "accept":
			return holdAccepted(args)
		case "connect":
			return holdConnected(args)
		case "dump":
			return bareDump(ctx)
		case "cli":
			return countAllocations(ctx, args)
		case "check":
			return watchCheck(ctx, args)
		case "one":
			return watchOne(ctx, args)
		case "apply":
			return timeApply(ctx, args)
		case "hook":
			return measureHook(ctx)
		case "policy":
			return measurePolicy(args)
		case "policy-calls":
			return repeatPolicy(args)
		case "trace":
			return traceProbes(ctx, args)
		case "probes":
			return sendProbes(args)
		}
		return fmt.Errorf("no role %q", os.Args[2])
	}
	numbers := flag.String("n", "10000,100000", "numbers of connections")
	quick := flag.Bool("quick", false, "few runs, 1000 connections")
	processes := flag.Bool("ss-processes", false, "run ss -tnpH at any number of connections (half a minute at 100,000)")
	keepalive := flag.Bool("keepalive", false, "server sockets with keepalive on, so that deadpeer reads their settings")
	onlyTrace := flag.Bool("trace", false, "measure tracing only")
	onlyHook := flag.Bool("hook", false, "measure hooks on new connections only")
	onlyAttach := flag.Bool("attach", false, "measure attaching only")
	binary := flag.String("deadpeer", "", "deadpeer binary to measure (default: built from this tree)")
	flag.Parse()
	code, reexeced, err := testnet.Reexec(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	if reexeced {
		os.Exit(code)
	}
	o := options{runs: 7, checks: 3, ssProcesses: *processes, keepalive: *keepalive}
	if *quick {
		o.runs, o.checks, *numbers = 3, 1, "1000"
	}
	dir, err := os.MkdirTemp("", "deadpeer-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if *onlyTrace || *onlyHook {
		if o.self, err = os.Executable(); err != nil {
			return err
		}
		if *onlyHook {
			return o.benchHook(ctx)
		}
		return o.benchTrace(ctx, dir)
	}
	if err := o.programs(ctx, dir, *binary); err != nil {
		return err
	}
	each := o.bench
	if *onlyAttach {
		each = o.benchAttachOnly
	} else if err := o.benchOnce(ctx, dir); err != nil {
		return err
	}
	for word := range strings.SplitSeq(*numbers, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 2 {
			return fmt.Errorf("-n: %q is no number of connections", word)
		}
		if err := each(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// benchOnce measures what needs no great number of connections.
func (o options) benchOnce(ctx context.Context, dir string) error {
	if err := o.benchPolicy(ctx, dir); err != nil {
		return err
	}
	if err := o.benchTrace(ctx, dir); err != nil {
		return err
	}
	return o.benchHook(ctx)
}

// options are what the runs have in common.
type options struct {
	runs, checks int
	ssProcesses  bool
	keepalive    bool
	self         string   // this binary
	deadpeer     string   // the binary that is measured
	ss           string   // "" when it is not there
	bare         []string // the bare dump
	bareIs       string   // what it is made of
}

// programs finds and builds what is measured.
func (o *options) programs(ctx context.Context, dir, binary string) (err error) {
	if o.self, err = os.Executable(); err != nil {
		return err
	}
	if o.deadpeer = binary; binary == "" {
		o.deadpeer = filepath.Join(dir, "deadpeer")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", o.deadpeer, "deadpeer/cmd/deadpeer")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build deadpeer: %w\n%s", err, out)
		}
	}
	if o.ss, err = exec.LookPath("ss"); err != nil {
		o.ss = ""
	}
	o.bare, o.bareIs = []string{o.self, role, "dump"}, "Go, for want of a C compiler"
	if cc, err := exec.LookPath("cc"); err == nil {
		source, program := filepath.Join(dir, "dump.c"), filepath.Join(dir, "dump")
		if err := os.WriteFile(source, dumpSource, 0o600); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, cc, "-O2", "-o", program, source).CombinedOutput(); err != nil {
			return fmt.Errorf("compile bare dump: %w\n%s", err, out)
		}
		o.bare, o.bareIs = []string{program}, "C"
	}
	return nil
}
