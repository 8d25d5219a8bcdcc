package release

import "golang.org/x/sys/unix"

// urgent keeps the scheduler from taking the processor away from the calling
// thread for others (SCHED_FIFO, sched(7)) until calm, since whatever arrives
// between reading a socket and destroying it goes unseen. The caller is locked
// to the thread. Needs CAP_SYS_NICE; without it nothing changes.
func urgent() (calm func()) {
	was, err := unix.SchedGetAttr(0, 0)
	if err != nil || was.Policy != unix.SCHED_NORMAL && was.Policy != unix.SCHED_BATCH {
		return func() {}
	}
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if unix.SchedSetAttr(0, &fifo, 0) != nil {
		return func() {}
	}
	// Giving up is always allowed, but not of SCHED_FLAG_RESET_ON_FORK.
	return func() { _ = unix.SchedSetAttr(0, was, 0) }
}
