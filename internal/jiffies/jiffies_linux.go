package jiffies

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// HZ is the kernel's tick rate (CONFIG_HZ): the coarse clocks advance once a
// tick (clock_getres(2)). 250 when that cannot be read.
func HZ() int {
	var res unix.Timespec
	if unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res) != nil || res.Nano() <= 0 {
		return defaultHZ
	}
	return int((int64(time.Second) + res.Nano()/2) / res.Nano())
}

// Monotonic is CLOCK_MONOTONIC now.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has that clock
	}
	return time.Duration(ts.Nano())
}

// Read reads the counter from /proc/timer_list, which needs root
// (CAP_SYS_ADMIN in the initial user namespace).
func Read() (Counter, error) {
	c := Counter{hz: HZ()}
	tick := int64(time.Second) / int64(c.hz)
	// Around the change of a tick the file has one too many, and the counter
	// itself comes a little late. That befalls one of three readings at most.
	var zeros [3]int64
	for i := range zeros {
		now, ticks, err := read()
		if err != nil {
			return Counter{}, fmt.Errorf("read tick counter: %w", err)
		}
		zeros[i] = ticks - int64(now)/tick
	}
	slices.Sort(zeros[:])
	c.zero = zeros[len(zeros)/2]
	return c, nil
}

func read() (now time.Duration, ticks int64, err error) {
	f, err := os.Open("/proc/timer_list")
	if errors.Is(err, fs.ErrPermission) {
		return 0, 0, fmt.Errorf("%w (needs root)", err)
	}
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }() // it was read only
	if now, ticks, err = parse(f); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return now, ticks, nil
}
