package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	watchEvery = 50 * time.Millisecond
	gapLimit   = 500 * time.Millisecond // beyond it answers may have been lost to us
)

// watch notices that this machine, or this process, stood still: the
// scheduler kept us waiting, or the host was suspended (CLOCK_BOOTTIME goes
// on, CLOCK_MONOTONIC does not).
type watch struct {
	count atomic.Uint32
	stop  chan struct{}
	done  sync.WaitGroup
}

func newWatch() *watch {
	w := &watch{stop: make(chan struct{})}
	w.done.Go(w.run)
	return w
}

func (w *watch) run() {
	last, asleep := time.Now(), suspended()
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(watchEvery):
		}
		now, sleep := time.Now(), suspended()
		if now.Sub(last) > watchEvery+gapLimit || sleep-asleep > gapLimit {
			w.count.Add(1)
		}
		last, asleep = now, sleep
	}
}

// suspended is for how long the host has been suspended since it booted.
func suspended() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}

// gaps counts the standstills so far.
func (w *watch) gaps() uint32 { return w.count.Load() }

func (w *watch) close() {
	close(w.stop)
	w.done.Wait()
}
