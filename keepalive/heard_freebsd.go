package keepalive

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func heardFD(fd uintptr) (time.Duration, error) {
	var info [256]byte
	size := uint32(len(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, thisSystem().explain(socket(fd), fmt.Errorf("get TCP_INFO: %w", errno))
	}
	d, connected, err := heardFreeBSD(info[:min(int(size), len(info))])
	if err == nil && !connected {
		err = unix.ENOTCONN
	}
	return d, err
}
