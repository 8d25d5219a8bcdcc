package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/keepalive"
)

// probing has the kernel probe a connection idle for a second, and again each
// second. It must not end the connection by it: that is for its owner to
// decide.
var probing = keepalive.Policy{Idle: time.Second, Interval: time.Second, Probes: 127, UserTimeout: -1}

// slack is what tcpi_last_ack_recv may be off by: a tick at the lowest
// CONFIG_HZ, and one for rounding.
const slack = 20 * time.Millisecond

func ping(ctx context.Context, c *net.TCPConn) (err error) {
	if err := peek(c); err != nil {
		return fmt.Errorf("look at connection: %w", err)
	}
	own, err := keepalive.Get(c)
	if err != nil {
		return err
	}
	if err := keepalive.Set(c, probing); err != nil {
		return err
	}
	defer func() {
		// A connection that ended has nothing to put back.
		if restoreErr := keepalive.Restore(c, own); err == nil {
			err = restoreErr
		}
	}()
	start := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		ago, err := keepalive.Heard(c)
		if err != nil {
			return err
		}
		if time.Since(start) > ago+slack {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for answer to probe: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// peek is the error the connection has ended with, io.EOF when by the peer.
func peek(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var peekErr error
	err = raw.Control(func(fd uintptr) {
		n, _, peekErr = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	switch {
	case err != nil:
		return err
	case errors.Is(peekErr, unix.EAGAIN), errors.Is(peekErr, unix.EINTR):
		return nil
	case peekErr == nil && n == 0:
		return io.EOF
	}
	return peekErr
}
