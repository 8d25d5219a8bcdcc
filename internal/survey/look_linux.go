package survey

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// look reads tcp_info (tcp(7)) and the clocks.
func look(tcp *net.TCPConn) (c counts, err error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return c, fmt.Errorf("look at connection: %w", err)
	}
	var info *unix.TCPInfo
	controlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if controlErr != nil {
		err = controlErr
	}
	if err != nil {
		return c, fmt.Errorf("look at connection: %w", err)
	}
	var awake, boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake); err != nil {
		return c, fmt.Errorf("read clock: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return c, fmt.Errorf("read clock: %w", err)
	}
	return counts{
		segments: uint64(info.Segs_in) + uint64(info.Segs_out), received: info.Bytes_received, came: info.Segs_in,
		established: info.State == unix.BPF_TCP_ESTABLISHED,
		rtt:         time.Duration(info.Rtt) * time.Microsecond,
		asleep:      time.Duration(boot.Nano() - awake.Nano()),
	}, nil
}
