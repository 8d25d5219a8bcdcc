package keepalive

import (
	"encoding/binary"
	"errors"
	"time"
)

// heardFreeBSD reads struct tcp_info of FreeBSD (netinet/tcp.h): the state in
// the first byte, tcpi_last_data_recv in microseconds at 52. Despite the name
// it is t_rcvtime, which every segment moves. connected is false for CLOSED,
// LISTEN and SYN-SENT.
func heardFreeBSD(info []byte) (d time.Duration, connected bool, err error) {
	const at = 52
	if len(info) < at+4 {
		return 0, false, errors.New("read TCP_INFO: too short")
	}
	if info[0] < 3 {
		return 0, false, nil
	}
	return time.Duration(binary.NativeEndian.Uint32(info[at:])) * time.Microsecond, true, nil
}
