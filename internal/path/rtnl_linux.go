package path

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bufferSize holds the greatest datagram of rtnetlink: dumps keep to 32 KB,
// notifications to one message.
const bufferSize = 64 << 10

// rtnl asks rtnetlink one thing at a time. Safe for concurrent use.
type rtnl struct {
	mu      sync.Mutex
	fd      int // -1 when closed
	seq     uint32
	out, in []byte // reused
}

// dial opens an rtnl in the network namespace of the calling thread.
func dial() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// The kernel answers within write(2); this is for an answer that was
	// dropped for want of memory.
	timeout := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink socket: %w", err), unix.Close(fd))
	}
	return &rtnl{fd: fd, in: make([]byte, bufferSize)}, nil
}

func (c *rtnl) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// one sends the request in c.out and gives the first message of the answer,
// which lies in c.in. An acknowledgement comes as an empty message.
func (c *rtnl) one() (message, error) {
	if err := c.send(); err != nil {
		return message{}, err
	}
	for {
		n, err := c.receive()
		if err != nil {
			return message{}, err
		}
		for b := c.in[:n]; len(b) > 0; {
			m, rest, ok := next(b)
			if !ok {
				return message{}, errMalformed
			}
			if b = rest; m.seq != c.seq {
				continue // of an earlier request that timed out
			}
			if m.kind == unix.NLMSG_ERROR {
				return message{}, errorOf(m.data)
			}
			return m, nil
		}
	}
}

// dump sends a request for all of something and hands on the messages.
// changed says that what was listed changed meanwhile (NLM_F_DUMP_INTR).
func (c *rtnl) dump(kind uint16, head []byte, each func(message)) (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	c.out = finish(append(begin(c.out, kind, unix.NLM_F_DUMP, c.seq), head...))
	if err := c.send(); err != nil {
		return false, err
	}
	for {
		n, err := c.receive()
		if err != nil {
			return false, err
		}
		for b := c.in[:n]; len(b) > 0; {
			m, rest, ok := next(b)
			if !ok {
				return false, errMalformed
			}
			if b = rest; m.seq != c.seq {
				continue
			}
			changed = changed || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_DONE:
				return changed, nil
			case unix.NLMSG_ERROR:
				return false, errorOf(m.data)
			}
			each(m)
		}
	}
}

func (c *rtnl) send() error {
	if c.fd < 0 {
		return os.ErrClosed
	}
	_, err := unix.Write(c.fd, c.out)
	return err
}

func (c *rtnl) receive() (int, error) {
	for {
		n, err := unix.Read(c.fd, c.in)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return 0, errors.New("no answer from rtnetlink")
		default:
			return n, err
		}
	}
}

var errMalformed = errors.New("malformed rtnetlink message")

// errorOf reads struct nlmsgerr; nil is an acknowledgement.
func errorOf(data []byte) error {
	if len(data) < 4 {
		return errMalformed
	}
	if errno := -int32(binary.NativeEndian.Uint32(data)); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
