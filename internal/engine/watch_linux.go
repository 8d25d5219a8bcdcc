package engine

import (
	"sync"
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
	mu     sync.Mutex
	last   time.Time // of the last look
	asleep time.Duration
	count  uint32
	stop   chan struct{}
	done   sync.WaitGroup
}

func newWatch() *watch {
	w := &watch{last: time.Now(), asleep: suspended(), stop: make(chan struct{})}
	w.done.Go(w.run)
	return w
}

func (w *watch) run() {
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(watchEvery):
			w.gaps()
		}
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

// gaps counts the standstills so far. It looks itself, so that whoever comes
// out of one and judges before the watch has run knows of it.
func (w *watch) gaps() uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, asleep := time.Now(), suspended()
	if now.Sub(w.last) > watchEvery+gapLimit || asleep-w.asleep > gapLimit {
		w.count++
	}
	w.last, w.asleep = now, asleep
	return w.count
}

func (w *watch) close() {
	close(w.stop)
	w.done.Wait()
}
