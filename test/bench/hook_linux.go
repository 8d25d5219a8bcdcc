package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/load"
	"deadpeer/internal/testnet"
)

// What a hook costs the programs of its cgroup is measured over loopback, in a
// process that is alone in a cgroup, with the hook and without it in turn.
const (
	hookRounds = 41
	hookCycles = 1000 // connections of a round
	loadRounds = 5
)

// benchHook starts that process, which prints what it finds.
func (o options) benchHook(ctx context.Context) (err error) {
	world, err := testnet.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	host, err := world.Host("hook")
	if err != nil {
		return err
	}
	if err := host.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}); err != nil {
		return fmt.Errorf("set up lo: %w", err)
	}
	cmd := exec.CommandContext(ctx, o.self, role, "hook")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := host.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// hooked is the process with the hook.
type hooked struct {
	cgroup string
	hook   *bpf.Hook
}

// measureHook measures and prints.
func measureHook(ctx context.Context) (err error) {
	h, err := newHooked()
	if err == nil {
		defer func() { err = errors.Join(err, h.close()) }()
		if err = h.set(true); err == nil {
			err = h.set(false)
		}
	}
	if err != nil {
		fmt.Printf("\na hook on new connections: not measured: %v\n", err)
		return nil
	}
	if err := h.measureCycles(); err != nil {
		return err
	}
	return h.measureLoad(ctx)
}

// newHooked enters a new cgroup, and mounts a bpffs for this process alone.
func newHooked() (*hooked, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return nil, fmt.Errorf("mount bpffs: %w", err)
	}
	root, err := bpf.CgroupRoot()
	if err != nil {
		return nil, err
	}
	h := &hooked{cgroup: filepath.Join(root, "deadpeer-bench-"+strconv.Itoa(os.Getpid()))}
	if err := os.Mkdir(h.cgroup, 0o755); err != nil {
		return nil, err
	}
	return h, os.WriteFile(filepath.Join(h.cgroup, "cgroup.procs"), []byte("0"), 0)
}

func (h *hooked) close() error {
	err := os.WriteFile(filepath.Join(filepath.Dir(h.cgroup), "cgroup.procs"), []byte("0"), 0)
	return errors.Join(err, h.set(false), os.Remove(h.cgroup))
}

// set makes or removes the hook.
func (h *hooked) set(on bool) (err error) {
	switch {
	case on:
		h.hook, err = bpf.AttachHook(bpf.HookOptions{ID: "bench", Cgroup: h.cgroup, Rules: []bpf.Rule{{Policy: quiet()}}})
	case h.hook != nil:
		err = h.hook.Remove()
		h.hook = nil
	}
	return err
}

func (h *hooked) measureCycles() error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(l) }()
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Port: serverPort}), unix.Listen(l, 8)); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	to := &unix.SockaddrInet4{Port: serverPort, Addr: [4]byte{127, 0, 0, 1}}
	times := map[bool][]time.Duration{}
	for round := range hookRounds {
		for _, on := range []bool{round%2 == 0, round%2 == 1} {
			if err := h.set(on); err != nil {
				return err
			}
			_, err := cycles(l, to, hookCycles/10)
			var took time.Duration
			if err == nil {
				took, err = cycles(l, to, hookCycles)
			}
			if err = errors.Join(err, h.set(false)); err != nil {
				return err
			}
			times[on] = append(times[on], took/hookCycles)
		}
	}
	var ratios []float64
	for i, without := range times[false] {
		ratios = append(ratios, float64(times[true][i])/float64(without))
	}
	slices.Sort(ratios)
	fmt.Printf("\na connection made, accepted and closed over loopback, both ends, processor time, medians of %d rounds of %d: %.1f µs; with a hook on it %.1f µs, %+.1f %% (middle half %+.1f to %+.1f %%, goal at most 7)\n",
		hookRounds, hookCycles, us(median(times[false])), us(median(times[true])),
		percent(ratios[len(ratios)/2]), percent(ratios[len(ratios)/4]), percent(ratios[len(ratios)*3/4]))
	return nil
}

func percent(ratio float64) float64 { return 100 * (ratio - 1) }

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// cycles is the processor time of n of them: nothing in it waits, and other
// programs do not count.
func cycles(l int, to unix.Sockaddr, n int) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var start, end unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &start); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	for range n {
		if err := cycle(l, to); err != nil {
			return 0, err
		}
	}
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &end); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(end.Nano() - start.Nano()), nil
}

// cycle makes a connection, accepts it and closes both ends, the first with a
// reset: thousands in TIME_WAIT would make each new port a longer search.
func cycle(l int, to unix.Sockaddr) error {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return errors.Join(os.NewSyscallError("setsockopt SO_LINGER", err), unix.Close(c))
	}
	if err := unix.Connect(c, to); err != nil {
		return errors.Join(os.NewSyscallError("connect", err), unix.Close(c))
	}
	s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return errors.Join(os.NewSyscallError("accept4", err), unix.Close(c))
	}
	return errors.Join(unix.Close(c), unix.Close(s))
}

// measureLoad has an application work with the hook on its connections and
// without it.
func (h *hooked) measureLoad(ctx context.Context) error {
	for _, rate := range []int{10_000, 0} {
		reports := map[bool][]load.Report{}
		for round := range loadRounds {
			for _, on := range []bool{round%2 == 0, round%2 == 1} {
				if err := h.set(on); err != nil {
					return err
				}
				second, cancel := context.WithTimeout(ctx, time.Second)
				r, err := load.Run(second, load.Options{Lasting: 32, Fresh: 8, Rate: rate})
				cancel()
				if err = errors.Join(err, ctx.Err(), h.set(false)); err != nil {
					return err
				}
				reports[on] = append(reports[on], r)
			}
		}
		asked := "as many requests as it can"
		if rate > 0 {
			asked = strconv.Itoa(rate) + " requests a second wanted"
		}
		fmt.Printf("an application, %s, 32 lasting connections and 8 clients with new ones, medians of %d rounds of 1 s: %s; with a hook %s\n",
			asked, loadRounds, describeLoad(reports[false]), describeLoad(reports[true]))
	}
	return nil
}

func describeLoad(list []load.Report) string {
	var rates, middles, p99s []time.Duration // rates: time of a request
	for _, r := range list {
		rates = append(rates, r.Took/time.Duration(max(r.Requests, 1)))
		middles, p99s = append(middles, r.Median), append(p99s, r.P99)
	}
	return fmt.Sprintf("%.0f a second, median %.0f µs, p99 %.0f µs (%.0f to %.0f)",
		float64(time.Second)/float64(max(median(rates), 1)), us(median(middles)), us(median(p99s)), us(slices.Min(p99s)), us(slices.Max(p99s)))
}
