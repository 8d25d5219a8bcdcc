package forecast

import "time"

// wheel is the kernel's timer wheel (kernel/time/timer.c). A timer armed for
// less than 63·8ⁿ ticks never fires early and is late by up to 8ⁿ ticks.
type wheel struct{ hz int }

const (
	defaultHZ = 250
	minHZ     = 24 // Kconfig.hz of the architectures: 24 to 1200
	maxHZ     = 1200
	maxLevel  = 8 // LVL_DEPTH - 1
)

func clampHZ(hz int) int {
	if hz == 0 {
		return defaultHZ
	}
	return min(max(hz, minHZ), maxHZ)
}

func (w wheel) tick() time.Duration { return time.Second / time.Duration(w.hz) }

// ticks is d in ticks, rounded up as msecs_to_jiffies does.
func (w wheel) ticks(d time.Duration) int64 {
	hz := time.Duration(w.hz)
	return int64(d/time.Second*hz + (d%time.Second*hz+time.Second-1)/time.Second)
}

// time is how long n ticks are.
func (w wheel) time(n int64) time.Duration {
	hz := int64(w.hz)
	return time.Duration(n/hz)*time.Second + time.Duration(n%hz)*time.Second/time.Duration(hz)
}

// late is by how much a timer armed for d can be late.
func (w wheel) late(d time.Duration) time.Duration {
	return time.Duration(granule(level(w.ticks(d)))) * time.Second / time.Duration(w.hz)
}

// level is the level of the wheel that a timer d ticks ahead of its clock is
// put in (calc_wheel_index).
func level(d int64) (n uint) {
	for n < maxLevel && d >= 63*granule(n) {
		n++
	}
	return n
}

// granule is how many ticks a bucket of the level holds.
func granule(level uint) int64 { return 1 << (3 * level) }

// fires is the tick at which a timer in the level goes off (calc_index).
func fires(expires int64, level uint) int64 { return (expires>>(3*level) + 1) << (3 * level) }

// inTimer is the level of a timer armed for d ticks by another's handler: the
// wheel's clock is one tick ahead then (__run_timers).
func inTimer(d int64) uint { return level(d - 1) }
