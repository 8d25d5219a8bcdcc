//go:build darwin || dragonfly || freebsd || illumos || netbsd || openbsd || solaris || windows

package keepalive

import (
	"errors"
	"runtime"
	"syscall"
)

func thisSystem() system {
	s, _ := systemFor(runtime.GOOS, release()) // the build tags above are its cases
	return s
}

func setFD(fd uintptr, p Policy, bestEffort bool) ([]*PartError, error) {
	return thisSystem().apply(socket(fd), p, bestEffort)
}

func getFD(fd uintptr) (Settings, error) { return thisSystem().read(socket(fd)) }

func restoreFD(fd uintptr, s Settings) error { return thisSystem().restore(socket(fd), s) }

func disableFD(fd uintptr) error {
	y := thisSystem()
	return y.set(socket(fd), y.on, 0)
}

func (socket) errno(err error) int {
	var e syscall.Errno
	errors.As(err, &e)
	return int(e)
}
