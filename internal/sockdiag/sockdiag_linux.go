package sockdiag

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/netns"
)

// Errors that callers branch on.
var (
	// ErrGone says that no socket has that cookie any more.
	ErrGone = errors.New("connection is gone")
	// ErrInterrupted says that a dump stayed inconsistent after every retry.
	ErrInterrupted = errors.New("dump interrupted again and again")
)

const (
	bufferLen   = 64 << 10 // several answers to single requests
	receiveLen  = 4 << 20  // answers of a whole batch fit, skb overhead included
	batchLen    = 64       // requests a send
	dumpRetries = 4
	patience    = 10 * time.Second // the kernel answers at once, or not at all
)

// Conn is a netlink socket inside one network namespace, which it pins until
// Close. It is for one goroutine at a time.
type Conn struct {
	fd      int
	netns   uint32
	seq     uint32
	buf     []byte
	dumpBuf [dumpBuffers][]byte
	req     []byte

	since, until time.Time // of the sockets that are being visited
}

// Query selects what Dump lists.
type Query struct {
	States conn.States        // 0 means conn.Connections
	Filter *conn.KernelFilter // tested by the kernel; an over-approximation, match again
	Memory bool               // also ask for socket memory
	NoInfo bool               // leave struct tcp_info out
	// Restart is called when the kernel could not give a consistent list:
	// forget every socket visited, they will be visited again.
	Restart func()
}

func (q Query) extensions() (ext uint8) {
	if !q.NoInfo {
		ext |= extInfo
	}
	if q.Memory {
		ext |= extMemory
	}
	return ext
}

// Open opens a sock_diag socket in ns, or in the current network namespace
// when ns is nil. Entering another namespace needs CAP_SYS_ADMIN.
func Open(ns *netns.NS) (*Conn, error) {
	if ns == nil {
		current, err := netns.Current()
		if err != nil {
			return nil, err
		}
		defer func() { _ = current.Close() }()
		ns = current
	}
	c := &Conn{fd: -1, netns: ns.Inode(), buf: make([]byte, bufferLen)}
	if err := ns.Do(c.open); err != nil {
		return nil, errors.Join(fmt.Errorf("open sock_diag socket: %w", err), c.Close())
	}
	return c, nil
}

func (c *Conn) open() (err error) {
	c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		c.fd = -1
		return os.NewSyscallError("socket", err)
	}
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveLen) // needs CAP_NET_ADMIN
	return errors.Join(
		os.NewSyscallError("setsockopt SO_RCVTIMEO", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)),
		// A connected netlink socket hears the kernel only.
		os.NewSyscallError("connect", unix.Connect(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})),
	)
}

// NetNS is the inode of the namespace the sockets belong to.
func (c *Conn) NetNS() uint32 { return c.netns }

// Close releases the socket and with it the namespace.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// Dump calls visit once for every TCP socket the query selects, IPv4 and IPv6
// alike, with memory that is used again for the next one. An error of visit
// ends the dump and is returned. Sockets that come and go meanwhile may be
// missed, or visited twice.
func (c *Conn) Dump(ctx context.Context, q Query, visit func(*conn.Sock, *Memory) error) error {
	if q.States == 0 {
		q.States = conn.Connections
	}
	code, err := compile(q.Filter)
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	for range dumpRetries {
		err = c.dump(ctx, q, code, visit)
		if !errors.Is(err, errInconsistent) {
			break
		}
		if q.Restart != nil {
			q.Restart()
		}
		err = ErrInterrupted
	}
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	return nil
}

var errInconsistent = errors.New("inconsistent dump")

func (c *Conn) dump(ctx context.Context, q Query, code []byte, visit func(*conn.Sock, *Memory) error) error {
	c.seq++
	c.req = dumpRequest(c.req[:0], q.States, q.extensions(), code, c.seq)
	asked := time.Now()
	if err := c.send(c.req); err != nil {
		return err
	}
	sock := conn.Sock{NetNS: c.netns}
	var memory *Memory
	if q.Memory {
		memory = new(Memory)
	}
	var failed error // the rest of a dump is read even so, or it would be taken for the next answer
	r := c.read(asked)
	for p := range r.full {
		c.since, c.until = p.since, p.until
		for b := p.b; len(b) > 0 && failed == nil; {
			var h header
			if h, b, failed = next(b); failed != nil || h.seq != c.seq {
				continue
			}
			if h.flags&flagDumpIntr != 0 {
				failed = errInconsistent
				break
			}
			switch h.kind {
			case typeDone, typeError:
				failed = status(h.body)
			case typeDumpBoth, typeByFamily:
				if failed = parse(h.body, &sock, memory); failed == nil {
					failed = visit(&sock, memory)
				}
			}
		}
		switch {
		case failed != nil:
		case errors.Is(p.err, unix.ENOBUFS):
			failed = errInconsistent
		case p.err != nil:
			failed = p.err
		default:
			failed = ctx.Err()
		}
		r.free <- p.b[:cap(p.b)]
	}
	return failed
}

// Described gives the moments between which the kernel described the socket
// that Dump is visiting, or of which Lookup reports the outcome. A dump of even
// a few sockets takes as long as a walk over all of the host's, some
// milliseconds; looking one up takes microseconds.
func (c *Conn) Described() (since, until time.Time) { return c.since, c.until }

// Lookup reads the sockets again, by cookie, into themselves, and reports for
// each its index and ErrGone or another error. A socket that is gone is left
// as it was.
func (c *Conn) Lookup(socks []*conn.Sock, outcome func(i int, err error)) error {
	fresh := conn.Sock{NetNS: c.netns}
	return c.each(socks, typeByFamily, 0, extInfo, func(i int, h header) {
		if h.kind == typeError { // never an acknowledgement, for which nobody asked
			outcome(i, cmp.Or(gone(status(h.body)), errShort))
			return
		}
		err := parse(h.body, &fresh, nil)
		if err == nil && fresh.Cookie != socks[i].Cookie {
			err = ErrGone
		}
		if err == nil {
			*socks[i] = fresh
		}
		outcome(i, err)
	}, func(i int, err error) { outcome(i, err) })
}

// Destroy ends the sockets: the program that holds one gets ECONNABORTED, the
// peer, if it is there, a RST. Each is named to the kernel by its cookie, so
// that a new owner of the same addresses is never hit. Every socket's outcome
// is reported: nil, ErrGone, or another error. Needs CAP_NET_ADMIN
// (tcp_abort, sock_diag_destroy).
func (c *Conn) Destroy(socks []*conn.Sock, outcome func(i int, err error)) error {
	return c.each(socks, typeDestroy, flagAck, 0, func(i int, h header) {
		err := gone(status(h.body))
		switch {
		case h.kind != typeError || len(h.body) < 4:
			err = errShort
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("destroy socket: %w (needs CAP_NET_ADMIN)", err)
		case errors.Is(err, unix.EOPNOTSUPP):
			err = fmt.Errorf("destroy socket: %w (needs a kernel with CONFIG_INET_DIAG_DESTROY)", err)
		}
		outcome(i, err)
	}, func(i int, err error) { outcome(i, fmt.Errorf("destroy socket: %w", err)) })
}

// each sends one request a socket, batchLen a send, and hands every answer to
// answer. A socket that cannot be asked about, or whose answer was lost, goes
// to refuse.
func (c *Conn) each(socks []*conn.Sock, kind, flags uint16, ext uint8, answer func(int, header), refuse func(int, error)) error {
	for base := 0; base < len(socks); base += batchLen {
		batch := socks[base:min(base+batchLen, len(socks))]
		var waiting [batchLen]bool
		first, left := c.seq+1, 0
		c.req = c.req[:0]
		for i, s := range batch {
			c.seq++
			if err := c.mayName(s); err != nil {
				refuse(base+i, err)
				continue
			}
			c.req = oneRequest(c.req, kind, flags, ext, s, c.seq)
			waiting[i] = true
			left++
		}
		if left == 0 {
			continue
		}
		c.since = time.Now()
		err := c.send(c.req) // the kernel answers before it returns
		c.until = time.Now()
		for left > 0 && err == nil {
			var n int
			if n, err = c.receive(c.buf); err != nil {
				break
			}
			for b := c.buf[:n]; len(b) > 0; {
				var h header
				if h, b, err = next(b); err != nil {
					break
				}
				i := h.seq - first
				if i >= uint32(len(batch)) || !waiting[i] {
					continue // an answer that came after we had given it up
				}
				waiting[i] = false
				left--
				answer(base+int(i), h)
			}
		}
		for i := range batch {
			if waiting[i] {
				refuse(base+i, fmt.Errorf("no answer from the kernel: %w", err))
			}
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// mayName refuses what would name another socket than meant.
func (c *Conn) mayName(s *conn.Sock) error {
	switch {
	case s.NetNS != c.netns:
		return fmt.Errorf("connection of network namespace %d asked of namespace %d", s.NetNS, c.netns)
	case s.Cookie == 0 || s.Cookie == noCookie:
		return fmt.Errorf("no usable cookie (%#x)", s.Cookie)
	}
	return nil
}

func (c *Conn) send(b []byte) error {
	for {
		_, err := unix.Write(c.fd, b)
		if err != unix.EINTR {
			return os.NewSyscallError("send netlink request", err)
		}
	}
}

// receive fills buf with one datagram and returns its length, 0 with an error.
func (c *Conn) receive(buf []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, fmt.Errorf("receive netlink answer: nothing came for %s", patience)
		case err != nil:
			return 0, os.NewSyscallError("receive netlink answer", err)
		case n == 0:
			return 0, fmt.Errorf("receive netlink answer: %w", errShort)
		}
		return n, nil
	}
}

func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return ErrGone
	}
	return err
}
