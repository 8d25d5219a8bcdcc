// Package tcp asks for the peer of a TCP connection whose protocol is not
// known: it has the kernel send keepalive probes and waits for the answer.
//
//	monitor.Add("feed", heartbeat.PingFunc(func(ctx context.Context) error { return tcp.Ping(ctx, conn) }))
//
// This proves the kernel of the next TCP endpoint, not the application: a
// proxy answers for a dead server behind it, and a kernel for a program that
// hangs. Where the protocol has a ping of its own, use that.
//
// Linux only: elsewhere the error matches [errors.ErrUnsupported]. No
// privileges.
package tcp

import (
	"context"
	"errors"
	"net"

	"deadpeer/heartbeat"
	"deadpeer/internal/holder"
)

// Ping asks whether the other end of c is there. It needs up to a second more
// than the round trip, since Linux counts idle time in seconds
// (TCP_KEEPIDLE in tcp(7)). It puts the keepalive settings of c back. A
// connection that the peer has closed is io.EOF, unless something is left to
// read.
func Ping(ctx context.Context, c *net.TCPConn) error { return ping(ctx, c) }

// ErrNotConnected is the error of a [Target] that has no connection at present.
var ErrNotConnected = errors.New("not connected")

// Target is one connection that is held for its pings alone. Safe for
// concurrent use.
type Target struct {
	address string
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	held    holder.Of[*net.TCPConn]
}

var (
	_ heartbeat.Reconnecter = (*Target)(nil)
	_ heartbeat.Untimed     = (*Target)(nil)
)

// New makes a target that is not connected: its first pings fail, so that a
// monitor has it reconnect. A nil dial means a net.Dialer.
func New(address string, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Target {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return &Target{address: address, dial: dial}
}

// Ping is [Ping] on the connection.
func (t *Target) Ping(ctx context.Context) error {
	c, ok := t.held.Get()
	if !ok {
		return ErrNotConnected
	}
	return Ping(ctx, c)
}

// Untimed reports true: what a ping takes is mostly the second of which Ping
// speaks, and the kernel does not tell when it sent the probe.
func (t *Target) Untimed() bool { return true }

// Reconnect closes the connection, if any, and makes another.
func (t *Target) Reconnect(ctx context.Context) error { return t.held.Replace(ctx, t.connect) }

func (t *Target) connect(ctx context.Context) (*net.TCPConn, error) {
	c, err := t.dial(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("dial gave no TCP connection"), c.Close())
	}
	return tcp, nil
}

// Close closes the connection. It may be called again.
func (t *Target) Close() error { return t.held.Close() }
