package engine

import (
	"time"

	"golang.org/x/sys/unix"
)

// HZ is the kernel's tick rate (CONFIG_HZ): the coarse clocks advance once a
// tick (clock_getres(2)). 250 when that cannot be read.
func HZ() int {
	var res unix.Timespec
	if unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res) != nil || res.Nano() <= 0 {
		return 250
	}
	return int((int64(time.Second) + res.Nano()/2) / res.Nano())
}
