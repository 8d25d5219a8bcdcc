package held

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ThreadName is the name of threads that AsDeadpeer uses, as the kernel keeps
// it.
func ThreadName() [16]byte { return [16]byte([]byte("deadpeer-policy\x00")) }

// AsDeadpeer runs f on a thread with ThreadName, so that what f sets on sockets
// of a program is not taken for what the program wants (internal/bpf,
// HookOptions.Follow).
func AsDeadpeer(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before [16]byte
	ours := ThreadName()
	if prctl(unix.PR_GET_NAME, &before) == 0 && prctl(unix.PR_SET_NAME, &ours) == 0 {
		defer prctl(unix.PR_SET_NAME, &before)
	}
	f()
}

// Spare gives Go one processor more than workers that call the kernel side by
// side, until done is called. With none idle, the runtime takes theirs away
// every 20 µs while they are in the kernel, and getting one back costs more
// than the call: a fifth of the time in all. From then on Go no longer follows
// changes of the processors that the process may use (runtime.GOMAXPROCS).
func Spare(workers int) (done func()) {
	before := runtime.GOMAXPROCS(0)
	if before > workers {
		return func() {}
	}
	runtime.GOMAXPROCS(workers + 1)
	return func() { runtime.GOMAXPROCS(before) }
}

func prctl(option uintptr, name *[16]byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_PRCTL, option, uintptr(unsafe.Pointer(name)), 0)
	return errno
}
