package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

// wanted is the policy that is set: four values, so five options with
// SO_KEEPALIVE.
func wanted() keepalive.Policy {
	return keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 6, UserTimeout: 130 * time.Second}
}

// setters are the ways to set it. The first is what the others are compared
// with.
func setters() []setter {
	return []setter{
		{what: "net.TCPConn.SetKeepAliveConfig, TCP_USER_TIMEOUT by SyscallConn", set: byNet},
		{what: "keepalive.Set", goal: "3 at most", set: func(c connection) error { return keepalive.Set(c.tcp, wanted()) }},
		{what: "keepalive.SetFD", goal: "0", set: func(c connection) error { return keepalive.SetFD(c.fd, wanted()) }},
	}
}

type setter struct {
	what string
	goal string // of allocations
	set  func(c connection) error
}

// connection is an open one and its descriptor.
type connection struct {
	tcp *net.TCPConn
	fd  uintptr
}

func byNet(c connection) error {
	p := wanted()
	if err := c.tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: p.Idle, Interval: p.Interval, Count: p.Probes}); err != nil {
		return err
	}
	raw, err := c.tcp.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(p.UserTimeout.Milliseconds()))
	})
	return errors.Join(err, inner)
}

const (
	policyConnections = 200
	policyRounds      = 300
)

// cost is what one way to set the policy takes a connection.
type cost struct {
	Took   time.Duration // median of the rounds
	Allocs float64
}

// benchPolicy measures on the connections of one process and prints the table.
func (o options) benchPolicy(ctx context.Context, dir string) (err error) {
	world, err := testnet.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	host, err := world.Host("policy")
	if err != nil {
		return err
	}
	run := func(name string, args ...string) ([]byte, error) {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := host.Start(cmd); err != nil {
			return nil, err
		}
		if err := cmd.Wait(); err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, err)
		}
		return out.Bytes(), nil
	}
	out, err := run(o.self, role, "policy", strconv.Itoa(policyRounds))
	if err != nil {
		return err
	}
	var costs []cost
	if err := json.Unmarshal(out, &costs); err != nil || len(costs) != len(setters()) {
		return fmt.Errorf("read result of policy: %q: %w", out, err)
	}
	fmt.Printf("\na policy of 5 options set on a connection; medians of %d rounds over %d connections\n", policyRounds, policyConnections)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tns\tx net\tsystem calls\tallocations\tgoal\t")
	for i, s := range setters() {
		calls, file := "strace is missing", filepath.Join(dir, "calls")
		if strace, err := exec.LookPath("strace"); err == nil {
			if _, err := run(strace, "-f", "-c", "-U", "calls,name", "-e", "trace=%desc,%network", "-o", file, o.self, role, "policy-calls", strconv.Itoa(i)); err != nil {
				return err
			}
			if calls, err = callsEach(file, policyConnections*policyRounds/10); err != nil {
				return err
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%.2f\t%s\t%.2f\t%s\t\n", s.what, costs[i].Took.Nanoseconds(),
			float64(costs[i].Took)/float64(costs[0].Took), calls, costs[i].Allocs, s.goal)
	}
	return w.Flush()
}

// callsEach reads a table of strace -c and gives the calls of one of n turns.
// What is not made in every turn belongs to the start of the program.
func callsEach(file string, n int) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var each []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 2 || words[1] == "total" {
			continue
		}
		if calls, err := strconv.Atoi(words[0]); err == nil && calls >= n {
			each = append(each, fmt.Sprintf("%d %s", calls/n, words[1]))
		}
	}
	return strings.Join(each, ", "), lines.Err()
}

// measurePolicy sets the policy on all connections in every way in turn, and
// prints the costs.
func measurePolicy(args []string) error {
	rounds, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	list, err := openConnections(policyConnections)
	if err != nil {
		return err
	}
	ways := setters()
	times, allocs := make([][]time.Duration, len(ways)), make([]uint64, len(ways))
	for range rounds {
		for i, s := range ways {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			for _, c := range list {
				if err := s.set(c); err != nil {
					return fmt.Errorf("%s: %w", s.what, err)
				}
			}
			times[i] = append(times[i], time.Since(start)/time.Duration(len(list)))
			runtime.ReadMemStats(&after)
			allocs[i] += after.Mallocs - before.Mallocs
		}
	}
	costs := make([]cost, len(ways))
	for i := range ways {
		costs[i] = cost{median(times[i]), float64(allocs[i]) / float64(rounds*len(list))}
	}
	return json.NewEncoder(os.Stdout).Encode(costs)
}

// repeatPolicy sets the policy in one way and does nothing else, for strace.
func repeatPolicy(args []string) error {
	i, err := strconv.Atoi(args[0])
	if err != nil || i < 0 || i >= len(setters()) {
		return fmt.Errorf("no way %q to set a policy", args[0])
	}
	list, err := openConnections(policyConnections)
	if err != nil {
		return err
	}
	for range policyRounds / 10 {
		for _, c := range list {
			if err := setters()[i].set(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// openConnections opens n of them over loopback, for as long as the process
// lives.
func openConnections(n int) ([]connection, error) {
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false) // it refuses some of the options
	l, err := config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	list := make([]connection, n)
	for i := range list {
		d := net.Dialer{KeepAlive: -1}
		if _, err := d.Dial("tcp4", l.Addr().String()); err != nil {
			return nil, err
		}
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		list[i].tcp = c.(*net.TCPConn)
		var raw syscall.RawConn
		if raw, err = list[i].tcp.SyscallConn(); err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { list[i].fd = fd }); err != nil {
			return nil, err
		}
	}
	return list, nil
}
