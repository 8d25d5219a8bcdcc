// Package jiffies tells how the kernel counts time: its tick rate (CONFIG_HZ)
// and the number of the tick at any moment, which together make a forecast of
// its timers exact.
//
//	counter, err := jiffies.Read()     // root only
//	in.HZ, in.Clock = jiffies.HZ(), counter.At(jiffies.Monotonic())
//
// The tick counter is a fixed distance from CLOCK_MONOTONIC for as long as the
// host runs (tick_do_update_jiffies64 in kernel/time/tick-sched.c). Linux;
// elsewhere HZ is 250 and Read returns an error matching errors.ErrUnsupported.
package jiffies

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"deadpeer/forecast"
)

// defaultHZ is taken where the rate cannot be found out.
const defaultHZ = 250

// Counter is the kernel's tick counter. The zero Counter is not known.
type Counter struct {
	hz   int
	zero int64 // what it was, or would have been, when CLOCK_MONOTONIC was 0
}

// Known tells whether the counter was read.
func (c Counter) Known() bool { return c.hz != 0 }

// At is the phase of the ticks at a moment of CLOCK_MONOTONIC. It is zero, not
// known, when the counter is.
func (c Counter) At(monotonic time.Duration) forecast.Clock {
	if !c.Known() {
		return forecast.Clock{}
	}
	tick := time.Second / time.Duration(c.hz)
	return forecast.Clock{Jiffies: uint64(c.zero + int64(monotonic/tick)), Since: monotonic % tick}
}

var errFormat = errors.New("neither \"now at\" nor \"jiffies:\" in it")

// parse finds the two lines of timer_list that belong together: the time and
// the ticks at that time, or a moment later. What follows is not read.
func parse(r io.Reader) (now time.Duration, ticks int64, err error) {
	const most = 1 << 20 // the timers of one processor come between
	lines := bufio.NewScanner(io.LimitReader(r, most))
	now = -1
	for lines.Scan() {
		line := lines.Text()
		if rest, found := strings.CutPrefix(line, "now at "); found {
			digits, _, _ := strings.Cut(rest, " ")
			ns, err := strconv.ParseInt(digits, 10, 64)
			if err != nil || ns < 0 {
				return 0, 0, fmt.Errorf("time %q: want nanoseconds", digits)
			}
			now = time.Duration(ns)
		}
		if rest, found := strings.CutPrefix(line, "jiffies: "); found && now >= 0 {
			ticks, err = strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil || ticks < 0 {
				return 0, 0, fmt.Errorf("jiffies %q: want a number", rest)
			}
			return now, ticks, nil
		}
	}
	if err := lines.Err(); err != nil {
		return 0, 0, err
	}
	return 0, 0, errFormat
}
