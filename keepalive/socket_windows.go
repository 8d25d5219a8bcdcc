package keepalive

import (
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// socket is the real sockopts.
type socket uintptr

func (s socket) get(o option) (int, error) {
	return windows.GetsockoptInt(windows.Handle(s), o.level, o.name)
}

func (s socket) set(o option, value int) error {
	return windows.SetsockoptInt(windows.Handle(s), o.level, o.name, value)
}

func (s socket) vals(idle, interval time.Duration) error {
	v := windows.TCPKeepalive{
		OnOff:    1,
		Time:     uint32(idle / time.Millisecond),
		Interval: uint32(interval / time.Millisecond),
	}
	var returned uint32
	return windows.WSAIoctl(windows.Handle(s), windows.SIO_KEEPALIVE_VALS,
		(*byte)(unsafe.Pointer(&v)), uint32(unsafe.Sizeof(v)), nil, 0, &returned, nil, 0)
}

func (socket) fresh(o option) (int, error) {
	h, err := windows.WSASocket(windows.AF_INET, windows.SOCK_STREAM, windows.IPPROTO_TCP, nil, 0,
		windows.WSA_FLAG_OVERLAPPED|windows.WSA_FLAG_NO_HANDLE_INHERIT)
	if err != nil {
		return 0, err
	}
	defer windows.Closesocket(h)
	return windows.GetsockoptInt(h, o.level, o.name)
}

func release() string { return "" }
