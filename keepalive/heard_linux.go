package keepalive

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func heardFD(sock uintptr) (time.Duration, error) {
	fd := int(sock)
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, explain(fd, fmt.Errorf("get TCP_INFO: %w", err))
	}
	switch info.State {
	case unix.BPF_TCP_CLOSE, unix.BPF_TCP_LISTEN, unix.BPF_TCP_SYN_SENT:
		return 0, unix.ENOTCONN
	}
	return time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond, nil
}
