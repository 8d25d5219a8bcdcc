// Package script runs the command line as people do and compares what it
// says: every .txtar file beside this one is a transcript, failures included.
//
// The scripts have five programs and one command:
//
//	deadpeer ARG...      in an empty network namespace, with an empty /run and /var/lib;
//	                     UNPRIVILEGED=1 takes its capabilities away
//	half-open ARG...     deadpeer ARG... --netns of a server on port 5432 with
//	                     two connections: 10.…:living answers, 10.…:gone is cut off;
//	                     after the word then other commands, without --netns
//	own-host STEP [THEN STEP]...
//	                     a host of its own, with nothing in /etc/sysctl.d, for
//	                     all the steps: deadpeer's arguments, WRITE FILE LINE...,
//	                     CAT FILE or READONLY FOLDER
//	behind-nat ARG...    deadpeer ARG... on a client whose NAT forgets connections
//	                     after 3 s, or as NAT=DURATION says, and answers RST; the
//	                     server is 10.0.1.2:5432
//	serving ARG...       deadpeer ARG... beside a ZEO server on 127.0.0.1:8100 and an
//	                     HTTP server on port 8080: /good is, /bad answers 502
//	json-paths PATH...   every path of the JSON on stdin, with its type unless
//	                     it is named: then that depends on the machine
//	exits CODE PROGRAM ARG...
//
// $ESCAPE is a word that would clear a terminal.
//
// Expected output is rewritten by go test ./test/script -update.
package script

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/cli"
	"deadpeer/internal/testnet"
)

//go:generate go test . -run TestScripts -update

var update = flag.Bool("update", false, "rewrite the expected output in the scripts")

func TestMain(m *testing.M) {
	testscript.Main(namespaced{m}, map[string]func(){
		"deadpeer":   func() { isolate(); os.Exit(deadpeer(os.Args[1:])) },
		"half-open":  func() { isolate(); os.Exit(halfOpen(os.Args[1:])) },
		"serving":    func() { isolate(); os.Exit(serving(os.Args[1:])) },
		"own-host":   func() { os.Exit(ownHost(os.Args[1:])) },
		"behind-nat": func() { isolate(); os.Exit(behindNAT(os.Args[1:])) },
		"json-paths": func() { os.Exit(jsonPaths(os.Stdin, os.Stdout, os.Args[1:])) },
	})
}

// namespaced runs the tests where namespaces can be made.
type namespaced struct{ *testing.M }

func (n namespaced) Run() int {
	// The scripts wait more than they compute: several at once.
	if f := flag.Lookup("test.parallel"); f != nil {
		check(f.Value.Set("8"))
	}
	return testnet.Main(n.M)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: ".",
		Setup: func(e *testscript.Env) error {
			e.Setenv("ESCAPE", "\x1b[2Jsport")
			return nil
		},
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exits runs a program and compares its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// isolate starts the process over in a network namespace of its own with an
// empty /run, so that nothing of this host is seen and nothing is left on it.
func isolate() {
	const mark = "DEADPEER_SCRIPT_ISOLATED"
	if os.Getenv(mark) != "" {
		return
	}
	runtime.LockOSThread() // what follows is of this thread; execve(2) makes it the only one
	check(unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS))
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	empty("/run", "/var/lib", "/etc/sysctl.d")
	if root, err := bpf.CgroupRoot(); err == nil {
		empty(root) // doctor would see, and clean up, what other tests have there
	}
	if os.Getenv("UNPRIVILEGED") != "" {
		const noRoot = 1 // SECBIT_NOROOT: uid 0 gets no capabilities by execve(2)
		check(unix.Prctl(unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0))
	}
	check(syscall.Exec(must(os.Executable()), os.Args, append(os.Environ(), mark+"=1")))
}

// empty hides what is in folders, those that there are.
func empty(folders ...string) {
	for _, dir := range folders {
		if _, err := os.Stat(dir); err == nil {
			check(unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"))
		}
	}
}

// check ends a helper program that cannot do its part.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "test program:", err)
		os.Exit(125)
	}
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

// deadpeer is what cmd/deadpeer does.
func deadpeer(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Run(ctx, args, os.Stdin, os.Stdout, os.Stderr)
}

// halfOpen runs deadpeer on a server host with a living client and one whose
// link is cut. INTERRUPT=DURATION sends it a SIGINT that long after it began
// to ask; KEEPALIVE=DURATION is idle time and interval of three probes.
func halfOpen(args []string) int {
	ctx := context.Background()
	world := must(testnet.New(ctx))
	defer func() { check(world.Close()) }()
	server := must(world.Host("server"))
	for _, name := range []string{"living", "gone"} {
		client := must(world.Host(name))
		link := must(world.Connect(server, client))
		l := must(server.Listen(ctx, "tcp4", netip.AddrPortFrom(link.IPv4(server), 5432).String()))
		c := must(client.Dial(ctx, "tcp4", l.Addr().String()))
		defer func() { _ = c.Close() }()
		accepted := must(l.AcceptTCP())
		defer func() { _ = accepted.Close() }()
		// The policy that the scripts expect to read.
		policy := net.KeepAliveConfig{Enable: true, Idle: 2 * time.Hour, Interval: 75 * time.Second, Count: 9}
		if d, err := time.ParseDuration(os.Getenv("KEEPALIVE")); err == nil {
			policy = net.KeepAliveConfig{Enable: true, Idle: d, Interval: d, Count: 3}
		}
		check(accepted.SetKeepAliveConfig(policy))
		if name == "gone" {
			check(link.Cut())
		}
	}
	if after, err := time.ParseDuration(os.Getenv("INTERRUPT")); err == nil {
		go func() { // for as long as the process lasts
			for {
				if _, err := os.Stat("/run/deadpeer/ask.lock"); err == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(after)
			check(unix.Kill(os.Getpid(), unix.SIGINT))
		}()
	}
	netns := []string{"--netns", fmt.Sprintf("/proc/self/fd/%d", server.NS().Fd())}
	for first := true; ; first = false {
		then := slices.Index(args, "then")
		step := slices.Clone(args)
		if then >= 0 {
			step = step[:then]
		}
		// What is attached is found wherever it is.
		if first || step[0] == "attach" && !slices.Contains(step, "list") {
			step = append(step, netns...)
		}
		if code := deadpeer(step); code != 0 || then < 0 {
			return code
		}
		args = args[then+1:]
	}
}

// ownHost runs steps one after the other on a host that they have for
// themselves: process 1 is this program, in network and mount namespaces of
// its own. It writes what deadpeer says to stdout, and its exit code where
// that is not 0.
func ownHost(args []string) int {
	const mark = "DEADPEER_SCRIPT_HOST"
	if os.Getenv(mark) == "" {
		cmd := exec.Command(must(os.Executable()), args...)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), mark+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET}
		check(cmd.Run())
		return 0
	}
	check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	check(unix.Mount("proc", "/proc", "proc", 0, ""))
	empty("/run", "/etc", "/var/lib", "/usr/lib/sysctl.d", "/usr/local/lib/sysctl.d", "/lib/sysctl.d")
	check(os.Mkdir("/etc/sysctl.d", 0o755))
	check(os.MkdirAll("/run/systemd/system", 0o755)) // systemd is what booted it
	for len(args) > 0 {
		step := args
		if n := slices.Index(args, "THEN"); n >= 0 {
			step, args = args[:n], args[n+1:]
		} else {
			args = nil
		}
		switch step[0] {
		case "WRITE":
			check(os.WriteFile(step[1], []byte(strings.Join(step[2:], "\n")+"\n"), 0o644))
		case "CAT":
			fmt.Printf("%s", must(os.ReadFile(step[1])))
		case "READONLY":
			check(unix.Mount(step[1], step[1], "", unix.MS_BIND, ""))
			check(unix.Mount("", step[1], "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		default:
			if code := cli.Run(context.Background(), step, os.Stdin, os.Stdout, os.Stdout); code != 0 {
				fmt.Println("exit", code)
			}
		}
	}
	return 0
}

// behindNAT runs deadpeer on a host behind a NAT.
func behindNAT(args []string) int {
	ctx := context.Background()
	world := must(testnet.New(ctx))
	defer func() { check(world.Close()) }()
	client, server := must(world.Host("client")), must(world.Host("server"))
	remembers := 3 * time.Second
	if d, err := time.ParseDuration(os.Getenv("NAT")); err == nil {
		remembers = d
	}
	nat := must(world.NAT(client, server, testnet.NATOptions{Established: remembers, OnForgotten: testnet.Reset}))
	l := must(server.Listen(ctx, "tcp4", netip.AddrPortFrom(nat.Outside.IPv4(server), 5432).String()))
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			check(c.SetLinger(0))               // what the NAT forgot would be repeated
			defer func() { check(c.Close()) }() // when the program has ended
		}
	}()
	cmd := exec.CommandContext(ctx, must(os.Executable()), args...)
	cmd.Args[0] = "deadpeer"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	check(client.Start(cmd))
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		check(err)
	}
	check(l.Close())
	<-accepting
	return cmd.ProcessState.ExitCode()
}

// jsonPaths writes the path and type of every value, each pair once. The
// paths in vary have a type that depends on the machine.
func jsonPaths(r io.Reader, w io.Writer, vary []string) int {
	var value any
	check(json.NewDecoder(r).Decode(&value))
	var lines []string
	var walk func(path string, v any)
	walk = func(path string, v any) {
		kind := "null"
		switch v := v.(type) {
		case map[string]any:
			kind = "object"
			for k, e := range v {
				walk(path+"."+k, e)
			}
		case []any:
			kind = "array"
			for _, e := range v {
				walk(path+"[]", e)
			}
		case string:
			kind = "string"
		case float64:
			kind = "number"
		case bool:
			kind = "boolean"
		}
		if slices.Contains(vary, path) {
			kind = "varies"
		}
		lines = append(lines, path+" "+kind)
	}
	walk("", value)
	slices.Sort(lines)
	for _, line := range slices.Compact(lines) {
		fmt.Fprintln(w, line)
	}
	return 0
}
