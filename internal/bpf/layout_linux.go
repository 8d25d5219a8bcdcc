package bpf

import (
	"bytes"
	"structs"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// rawSettings is struct settings of c/settings.h.
type rawSettings struct {
	_             structs.HostLayout
	Idle          uint32
	Interval      uint32
	HostIdle      uint32
	HostInterval  uint32
	UserTimeoutMs uint32
	Probes        uint8
	HostProbes    uint8
	Keepalive     uint8
	Unused        uint8
}

// ticks is the kernel's tick rate (CONFIG_HZ): the coarse clocks advance once
// a tick (clock_getres(2)).
func ticks() (hz int64, err error) {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil {
		return 0, err
	}
	if res.Nano() <= 0 || res.Nano() > int64(time.Second) {
		return 0, unix.ERANGE
	}
	return (int64(time.Second) + res.Nano()/2) / res.Nano(), nil
}

func fromTicks(n uint32, hz int64) time.Duration {
	return time.Duration(int64(n) * int64(time.Second) / hz)
}

// settings makes the Settings of what a program handed over.
func (r rawSettings) settings(hz int64) Settings {
	s := Settings{
		Settings: keepalive.Settings{KeepAlive: r.Keepalive != 0},
		Own: keepalive.Policy{
			Idle: fromTicks(r.Idle, hz), Interval: fromTicks(r.Interval, hz), Probes: int(r.Probes),
			UserTimeout: time.Duration(r.UserTimeoutMs) * time.Millisecond,
		},
	}
	s.Policy = s.Own
	if r.Idle == 0 {
		s.Idle = fromTicks(r.HostIdle, hz)
	}
	if r.Interval == 0 {
		s.Interval = fromTicks(r.HostInterval, hz)
	}
	if r.Probes == 0 {
		s.Probes = int(r.HostProbes)
	}
	return s
}

const recordLen = int(unsafe.Sizeof(socketsRecord{}))

// recordReader turns what the program wrote into Records.
type recordReader struct {
	hz       int64
	raw      rawSettings // what settings were made of
	settings Settings
	comm     [16]byte // what r.Comm was made of
	r        Record
}

// read visits the whole records at the beginning of b and gives the rest.
func (d *recordReader) read(b []byte, visit func(*Record) error) (rest []byte, err error) {
	for ; len(b) >= recordLen; b = b[recordLen:] {
		var raw socketsRecord
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), recordLen), b)
		if err := visit(d.record(&raw)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (d *recordReader) record(raw *socketsRecord) *Record {
	r := &d.r
	// Neighbours are alike.
	if s := rawSettings(raw.Settings); s != d.raw || d.settings == (Settings{}) {
		d.raw, d.settings = s, s.settings(d.hz)
	}
	if comm := [16]byte(unsafe.Slice((*byte)(unsafe.Pointer(&raw.Comm)), 16)); comm != d.comm {
		name, _, _ := bytes.Cut(comm[:], []byte{0})
		d.comm, r.Comm = comm, string(name)
	}
	r.ID = conn.ID{NetNS: raw.Netns, Cookie: raw.Cookie}
	r.Owner = conn.Owner{PID: int32(raw.Pid), FD: int32(raw.Fd)}
	r.Inode, r.UID = raw.Inode, raw.Uid
	r.LocalIP, r.PeerIP = *(*[16]byte)(unsafe.Pointer(&raw.Local)), *(*[16]byte)(unsafe.Pointer(&raw.Peer))
	r.LocalPort, r.PeerPort = raw.LocalPort, raw.PeerPort
	r.State, r.Heard = conn.State(raw.State), fromTicks(raw.Heard, d.hz)
	r.Settings, r.MPTCP = d.settings, raw.Mptcp != 0
	if r.Family = conn.IPv6; raw.Family == unix.AF_INET {
		r.Family = conn.IPv4
	}
	return r
}
