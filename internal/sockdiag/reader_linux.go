package sockdiag

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dumpSkbLen    = 32 << 10       // what a dump skb is capped at (netlink_dump)
	dumpBufferLen = 4 * dumpSkbLen // few hand-overs: waking a goroutine costs as much as ten sockets
	dumpBuffers   = 2
)

// part is some datagrams of the answer to a dump, one after the other.
type part struct {
	b   []byte // back to reader.free once it was read
	err error
	// The kernel made it between these.
	since, until time.Time
}

// reader receives the answer to a dump on a goroutine of its own: the kernel
// makes the next part of the list while it hands over this one, and that
// should not wait for what the caller does with each socket.
type reader struct {
	full chan part // closed after the last
	free chan []byte
}

// read begins to receive the answer to the last request, made at asked. The caller takes
// parts from full until it is closed.
func (c *Conn) read(asked time.Time) *reader {
	r := &reader{full: make(chan part, dumpBuffers), free: make(chan []byte, dumpBuffers)}
	for i := range c.dumpBuf {
		if c.dumpBuf[i] == nil {
			c.dumpBuf[i] = make([]byte, dumpBufferLen)
		}
		r.free <- c.dumpBuf[i]
	}
	go func() {
		defer close(r.full)
		for more := true; more; {
			var p part
			p, more = c.fill(<-r.free, &asked)
			r.full <- p
		}
	}()
	return r
}

// fill receives into b for as long as another skb fits. Each is made at the
// end of the system call that asks for it, or receives the one before: made is
// when that of the next one began.
func (c *Conn) fill(b []byte, made *time.Time) (p part, more bool) {
	n := 0
	p.since = *made
	for more = true; more && p.err == nil && len(b)-n >= dumpSkbLen; {
		var got int
		*made = time.Now()
		got, p.err = c.receive(b[n:])
		more = !c.ends(b[n : n+got])
		n = min(align(n+got), len(b))
	}
	p.b, p.until = b[:n], time.Now()
	// After ENOBUFS part was lost, and the rest still comes.
	return p, more && (p.err == nil || errors.Is(p.err, unix.ENOBUFS))
}

// ends reports whether nothing follows b in the answer to the last request,
// because it is complete or makes no sense.
func (c *Conn) ends(b []byte) bool {
	for len(b) > 0 {
		h, rest, err := next(b)
		if err != nil || h.seq == c.seq && (h.kind == typeDone || h.kind == typeError) {
			return true
		}
		b = rest
	}
	return false
}
