package bpf

import (
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

const (
	recordLen     = int(unsafe.Sizeof(socketsConnection{}))
	descriptorLen = int(unsafe.Sizeof(socketsDescriptor{}))
)

// recordReader turns what the program wrote into Records.
type recordReader struct {
	hz  int64
	raw rawSettings // what the settings of r were made of
	r   Record
}

// read visits the whole records at the beginning of b and gives the rest.
func (d *recordReader) read(b []byte, visit func(*Record) error) (rest []byte, err error) {
	var raw socketsConnection
	for ; len(b) >= recordLen; b = b[recordLen:] {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), recordLen), b)
		d.decode(&raw)
		if err := visit(&d.r); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (d *recordReader) decode(raw *socketsConnection) {
	// Neighbours are alike.
	if s := rawSettings(raw.Settings); s != d.raw {
		d.raw, d.r.Settings = s, s.settings(d.hz)
	}
	d.r.Handle, d.r.Tick, d.r.Reuses = Handle{raw.Handle.Inode, raw.Handle.Place}, raw.Now, raw.Reuse != 0
	s := &d.r.Sock
	*s = conn.Sock{
		Cookie: raw.Cookie, Inode: raw.Handle.Inode, UID: raw.Uid, Interface: raw.Interface, Mark: raw.Mark, NetNS: s.NetNS,
		LocalIP: *(*[16]byte)(unsafe.Pointer(&raw.Local)), PeerIP: *(*[16]byte)(unsafe.Pointer(&raw.Peer)),
		LocalPort: raw.LocalPort, PeerPort: raw.PeerPort, Family: conn.IPv6,
		State: conn.State(raw.State), Timer: conn.Timer(raw.Timer), Retransmits: raw.Retransmits, TimerMS: d.ms(raw.Expires),
	}
	if raw.Family == unix.AF_INET {
		s.Family = conn.IPv4
	}
	if raw.Full == 0 {
		return
	}
	s.HasInfo, s.HasWindow, s.MPTCP, s.CgroupID = true, true, raw.Mptcp != 0, raw.Cgroup
	s.RecvQueue, s.SendQueue, s.SendWindow = raw.RecvQueue, raw.SendQueue, raw.SendWindow
	s.RTOUS, s.RTTUS, s.RTTVarUS = uint32(int64(raw.Rto)*int64(time.Second/time.Microsecond)/d.hz), raw.Rtt, raw.Rttvar
	s.LastDataSent, s.LastDataRecv, s.LastAckRecv = d.ms(raw.DataSent), d.ms(raw.DataRecv), d.ms(raw.AckRecv)
	s.SegsIn, s.SegsOut, s.Unacked = raw.SegsIn, raw.SegsOut, raw.Unacked
	s.Probes, s.Backoff = raw.Probes, raw.Backoff
}

// ms is jiffies_to_msecs of the kernel, which cuts off what does not fit.
func (d *recordReader) ms(ticks uint32) uint32 {
	return uint32(int64(ticks) * int64(time.Second/time.Millisecond) / d.hz)
}

// readDescriptors visits the whole records at the beginning of b and gives the
// rest.
func readDescriptors(b []byte, visit func(Descriptor)) (rest []byte) {
	var raw socketsDescriptor
	for ; len(b) >= descriptorLen; b = b[descriptorLen:] {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), descriptorLen), b)
		visit(Descriptor{Handle{raw.Handle.Inode, raw.Handle.Place}, conn.Owner{PID: int32(raw.Pid), FD: int32(raw.Fd)}})
	}
	return b
}
