//go:build darwin || dragonfly || freebsd || illumos || netbsd || openbsd || solaris

package keepalive

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// socket is the real sockopts.
type socket uintptr

func (s socket) get(o option) (int, error) { return unix.GetsockoptInt(int(s), o.level, o.name) }

func (s socket) set(o option, value int) error {
	return unix.SetsockoptInt(int(s), o.level, o.name, value)
}

func (socket) vals(time.Duration, time.Duration) error { return errors.ErrUnsupported }

func (socket) fresh(option) (int, error) { return 0, errors.ErrUnsupported }

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
