package testnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/wire"
)

// Segment is the header of one TCP segment on a link. Offloading may put the
// data of several segments into one.
type Segment struct {
	wire.Segment
	From *Host // the host that put it on the link, be it a router
}

// snapLength holds any IPv4 or IPv6 header and TCP header together.
const snapLength = 128

// Recorder keeps the headers of the TCP segments that hosts put on a link,
// those that the link then drops included. Safe for concurrent use.
type Recorder struct {
	link *Link
	file *os.File // AF_PACKET socket in the wire's namespace
	done chan struct{}

	mu       sync.Mutex
	segments []Segment
	overflow int           // segments beyond the limit
	changed  chan struct{} // closed at the next change
	closing  bool
	err      error // why nothing more will come
}

// Record records from now until [Recorder.Close] or [Net.Close].
func (l *Link) Record() (*Recorder, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.net.closed {
		return nil, fmt.Errorf("record link: %w", os.ErrClosed)
	}
	r := &Recorder{link: l, done: make(chan struct{}), changed: make(chan struct{})}
	if err := l.net.wire.Do(r.open); err != nil {
		return nil, fmt.Errorf("record link: %w", needCapability(err))
	}
	conn, err := r.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record link: %w", err), r.file.Close())
	}
	l.net.recorders = append(l.net.recorders, r)
	go r.run(conn)
	return r, nil
}

// Segments is what was recorded so far, in the order of arrival. The kernel
// hands segments over within milliseconds: wait for the last one expected.
func (r *Recorder) Segments() []Segment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.segments)
}

// Wait returns the first segment recorded, before or from now on, that match
// accepts. It fails when ctx is done or the recorder is closed.
func (r *Recorder) Wait(ctx context.Context, match func(Segment) bool) (Segment, error) {
	for seen := 0; ; {
		r.mu.Lock()
		fresh, changed, err := r.segments[seen:], r.changed, r.err
		r.mu.Unlock()
		if i := slices.IndexFunc(fresh, match); i >= 0 {
			return fresh[i], nil
		}
		if err != nil {
			return Segment{}, fmt.Errorf("wait for segment: %w", err)
		}
		seen += len(fresh)
		select {
		case <-ctx.Done():
			return Segment{}, fmt.Errorf("wait for segment: %w", ctx.Err())
		case <-changed:
		}
	}
}

// Close ends the recording; what was recorded can still be read. The error
// tells when the kernel or the limit of a million segments dropped some.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		return nil
	}
	r.closing = true
	r.mu.Unlock()
	dropped, statErr := r.dropped()
	err := r.file.Close()
	<-r.done
	if err := errors.Join(statErr, err); err != nil {
		return fmt.Errorf("close recorder: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch lost := dropped + r.overflow; {
	case lost > 0:
		return fmt.Errorf("record link: %d segments were not recorded", lost)
	case !errors.Is(r.err, os.ErrClosed):
		return fmt.Errorf("record link: %w", r.err)
	}
	return nil
}

// dropped is what the kernel dropped because the reader was slow.
func (r *Recorder) dropped() (n int, err error) {
	conn, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := conn.Control(func(fd uintptr) {
		var stats *unix.TpacketStats
		if stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			n = int(stats.Drops)
		}
	})
	return n, errors.Join(err, controlErr)
}

// open opens the socket in the calling thread's namespace: packets that come
// in on the link's ports, but not those going out, so that each counts once.
func (r *Recorder) open() error {
	// With protocol 0 nothing arrives before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	const (
		skfIfindex = ^uint32(0x1000) + 1 + 8 // SKF_AD_OFF + SKF_AD_IFINDEX of linux/filter.h
		bufferSize = 8 << 20
	)
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: skfIfindex},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(r.link.ends[0].portIndex), Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(r.link.ends[1].portIndex), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: snapLength},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	// Beyond net.core.rmem_max only with CAP_NET_ADMIN over the machine.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize)
	}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))}),
	)
	if err != nil {
		return errors.Join(fmt.Errorf("set up packet socket: %w", err), unix.Close(fd))
	}
	r.file = os.NewFile(uintptr(fd), "packet socket")
	return nil
}

// run owns the reading; it ends when the file is closed.
func (r *Recorder) run(conn syscall.RawConn) {
	defer close(r.done)
	var (
		packet  [snapLength]byte
		control [64]byte // one 16-byte timestamp
	)
	for {
		var n, controlLen int
		var from unix.Sockaddr
		var err error
		waitErr := conn.Read(func(fd uintptr) bool {
			n, controlLen, _, from, err = unix.Recvmsg(int(fd), packet[:], control[:], 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case waitErr != nil:
			r.end(waitErr)
			return
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			r.end(err)
			return
		}
		r.add(packet[:n], control[:controlLen], from)
	}
}

func (r *Recorder) add(packet, control []byte, from unix.Sockaddr) {
	var s Segment
	if wire.Parse(wire.LinkRaw, packet, len(packet), &s.Segment) != wire.Taken {
		return
	}
	if lla, ok := from.(*unix.SockaddrLinklayer); ok {
		for _, e := range r.link.ends {
			if e.portIndex == lla.Ifindex {
				s.From = e.host
			}
		}
	}
	s.Time = timestamp(control)
	r.mu.Lock()
	defer r.mu.Unlock()
	const limit = 1 << 20 // a runaway test must not fill the memory
	if len(r.segments) >= limit {
		r.overflow++
		return
	}
	r.segments = append(r.segments, s)
	r.wake()
}

// timestamp reads the SCM_TIMESTAMPNS_NEW message (socket(7)): seconds and
// nanoseconds, 64 bits each on every machine.
func timestamp(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS_NEW && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Time{}
}

func (r *Recorder) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if r.closing {
		r.err = os.ErrClosed
	}
	r.wake()
}

// wake needs r.mu held.
func (r *Recorder) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}
