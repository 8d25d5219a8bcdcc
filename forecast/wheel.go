package forecast

import "time"

// wheel is the kernel's timer wheel (kernel/time/timer.c). A timer armed for
// less than 63·8ⁿ ticks never fires early and is late by up to 8ⁿ ticks.
type wheel struct{ hz int }

const (
	defaultHZ = 250
	minHZ     = 24 // Kconfig.hz of the architectures: 24 to 1200
	maxHZ     = 1200
)

func clampHZ(hz int) int {
	if hz == 0 {
		return defaultHZ
	}
	return min(max(hz, minHZ), maxHZ)
}

func (w wheel) tick() time.Duration { return time.Second / time.Duration(w.hz) }

// late is by how much a timer armed for d can be late.
func (w wheel) late(d time.Duration) time.Duration {
	hz := time.Duration(w.hz)
	ticks := d/time.Second*hz + (d%time.Second*hz+time.Second-1)/time.Second
	granule := time.Duration(1)
	for ticks >= 63*granule {
		granule *= 8
	}
	return granule * time.Second / hz
}
