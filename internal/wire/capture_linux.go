package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
)

// The ring of TPACKET_V3 (packet(7), Documentation/networking/packet_mmap.rst).
const (
	blockBytes    = 1 << 18
	frameBytes    = 1 << 11
	retireAfter   = 10 * time.Millisecond // a block that is not full is handed over
	defaultRing   = 16 << 20
	pollEvery     = 50 * time.Millisecond
	handOverSlack = 4 * retireAfter // no packet comes later than that after its time
)

// Capture is a live view on the TCP segments of a network namespace, as they
// come and go on its interfaces. Needs CAP_NET_RAW there.
type Capture struct {
	fd       int
	ring     []byte
	block    int // next to be read
	loopback int32
	stats    CaptureStats
}

// OpenCapture begins to capture in a namespace.
func OpenCapture(ns *netns.NS, o CaptureOptions) (_ *Capture, err error) {
	if o.RingBytes <= 0 {
		o.RingBytes = defaultRing
	}
	c := &Capture{fd: -1}
	err = ns.Do(func() error { return c.open(o) })
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w (needs CAP_NET_RAW)", err)
		}
		return nil, errors.Join(fmt.Errorf("capture: %w", err), c.Close())
	}
	return c, nil
}

func (c *Capture) open(o CaptureOptions) (err error) {
	addr := unix.SockaddrLinklayer{Protocol: hostOrder(unix.ETH_P_ALL)}
	if o.Interface != "" && o.Interface != "any" {
		i, err := net.InterfaceByName(o.Interface)
		if err != nil {
			return fmt.Errorf("interface %q: %w", o.Interface, err)
		}
		addr.Ifindex = i.Index
	}
	if lo, err := net.InterfaceByName("lo"); err == nil {
		c.loopback = int32(lo.Index)
	}
	// Protocol 0 captures nothing until bind: nothing slips past the filter.
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	if err := c.filter(); err != nil {
		return fmt.Errorf("set filter: %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set ring version: %w", err)
	}
	blocks := max(2, o.RingBytes/blockBytes)
	err = unix.SetsockoptTpacketReq3(c.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size: blockBytes, Block_nr: uint32(blocks), Frame_size: frameBytes,
		Frame_nr: uint32(blocks * blockBytes / frameBytes), Retire_blk_tov: uint32(retireAfter.Milliseconds()),
	})
	if err != nil {
		return fmt.Errorf("set ring: %w", err)
	}
	c.ring, err = unix.Mmap(c.fd, 0, blocks*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map ring: %w", err)
	}
	if err := unix.Bind(c.fd, &addr); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// filter has the kernel hand over TCP only, and the headers only.
func (c *Capture) filter() error {
	raw, err := bpf.Assemble(program())
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
}

// program takes what may be TCP. It sees packets from their network header on,
// as the socket is SOCK_DGRAM; what VLAN tags and extension headers hide is
// for Parse to sort out.
func program() []bpf.Instruction {
	headers := []uint32{protoTCP, protoHopByHop, protoRouting, protoFragment, protoAuth, protoDestination, protoMobility}
	vlan := 6 + len(headers) + 1
	take, leave := vlan+2, vlan+3
	skip := func(from, to int) uint8 { return uint8(to - from - 1) }
	p := []bpf.Instruction{
		0: bpf.LoadExtension{Num: bpf.ExtProto},
		1: bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv4, SkipFalse: skip(1, 4)},
		2: bpf.LoadAbsolute{Off: 9, Size: 1},
		3: bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: skip(3, take), SkipFalse: skip(3, leave)},
		4: bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipFalse: skip(4, vlan)},
		5: bpf.LoadAbsolute{Off: 6, Size: 1},
	}
	for _, header := range headers {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: header, SkipTrue: skip(len(p), take)})
	}
	return append(p,
		bpf.Jump{Skip: uint32(skip(vlan-1, leave))},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherVLAN, SkipTrue: skip(vlan, take)},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherQinQ, SkipFalse: skip(vlan+1, leave)},
		bpf.RetConstant{Val: snapLength},
		bpf.RetConstant{Val: 0},
	)
}

// Each visits packets as they come, until visit gives an error or ctx ends.
// idle, unless nil, is called several times a second with a time before which
// no packet will come any more. Not for concurrent use.
func (c *Capture) Each(ctx context.Context, visit func(*Packet) error, idle func(time.Time)) error {
	var p Packet
	for ctx.Err() == nil {
		status := c.status()
		if status.Load()&unix.TP_STATUS_USER == 0 {
			if err := c.wait(); err != nil {
				return err
			}
			// A block retired while we looked is visited before time passes.
			if status.Load()&unix.TP_STATUS_USER == 0 {
				if idle != nil {
					idle(time.Now().Add(-handOverSlack))
				}
				continue
			}
		}
		if err := c.visitBlock(&p, visit); err != nil {
			return err
		}
		status.Store(unix.TP_STATUS_KERNEL)
		c.block = (c.block + 1) % (len(c.ring) / blockBytes)
	}
	return ctx.Err()
}

func (c *Capture) desc() *unix.TpacketHdrV1 {
	const skipVersionAndPriv = 8
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&c.ring[c.block*blockBytes+skipVersionAndPriv]))
}

func (c *Capture) status() *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&c.desc().Block_status))
}

func (c *Capture) wait() error {
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN | unix.POLLERR}}
	_, err := unix.Poll(fds, int(pollEvery.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for packets: %w", err)
	}
	if fds[0].Revents&unix.POLLERR != 0 {
		// The error of an interface that went away; cleared by reading it.
		if code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
			return fmt.Errorf("capture: %w", unix.Errno(code))
		}
	}
	return nil
}

// visitBlock visits the packets of a block that the kernel handed over. The
// kernel wrote it, and it is checked all the same.
func (c *Capture) visitBlock(p *Packet, visit func(*Packet) error) error {
	block := c.ring[c.block*blockBytes:][:blockBytes]
	d := c.desc()
	at := int(d.Offset_to_first_pkt)
	for range d.Num_pkts {
		if at < 0 || at+unix.SizeofTpacket3Hdr+unix.SizeofSockaddrLinklayer > blockBytes {
			return fmt.Errorf("read ring: packet at %d is outside of its block", at)
		}
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[at]))
		from, to := at+int(h.Net), at+int(h.Net)+int(h.Snaplen)
		if to > blockBytes || from > to {
			return fmt.Errorf("read ring: packet of %d bytes at %d is outside of its block", h.Snaplen, at)
		}
		ll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&block[at+unix.SizeofTpacket3Hdr]))
		at += int(h.Next_offset)
		c.stats.Received++
		if ll.Ifindex == c.loopback && ll.Pkttype == unix.PACKET_OUTGOING {
			continue // it comes again as incoming
		}
		*p = Packet{
			Time: time.Unix(int64(h.Sec), int64(h.Nsec)), Data: block[from:to:to], Length: int(h.Len),
			Interface: ll.Ifindex, Hardware: ll.Hatype, Protocol: networkOrder(ll.Protocol),
			Type: ll.Pkttype, AddrLen: min(ll.Halen, 8), Addr: ll.Addr,
		}
		if err := visit(p); err != nil {
			return err
		}
	}
	return nil
}

// Stats counts since the capture began.
func (c *Capture) Stats() (CaptureStats, error) {
	s, err := unix.GetsockoptTpacketStatsV3(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return c.stats, fmt.Errorf("read capture statistics: %w", err)
	}
	c.stats.Dropped += uint64(s.Drops) // the kernel's count begins anew at each look
	return c.stats, nil
}

// Close ends the capture. Not while Each runs.
func (c *Capture) Close() error {
	var err error
	if c.ring != nil {
		err = unix.Munmap(c.ring)
		c.ring = nil
	}
	if c.fd >= 0 {
		err = errors.Join(err, unix.Close(c.fd))
		c.fd = -1
	}
	return err
}

// hostOrder gives the value whose bytes in memory are v in network order.
func hostOrder(v uint16) uint16 {
	b := [2]byte{byte(v >> 8), byte(v)}
	return *(*uint16)(unsafe.Pointer(&b[0]))
}

// networkOrder reads a value that lies in memory in network order.
func networkOrder(v uint16) uint16 { return hostOrder(v) }
