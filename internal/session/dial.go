package session

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// dialer makes TCP connections from the network namespace of within. Sockets
// of the file system are the same in all of them.
type dialer struct {
	within func(func() error) error // nil: the caller's own
}

// DialContext is [net.Dialer.DialContext].
func (d dialer) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	var plain net.Dialer
	if d.within == nil || network == "unix" {
		return plain.DialContext(ctx, network, address)
	}
	err = d.each(ctx, address, func(literal string) (err error) {
		c, err = plain.DialContext(ctx, network, literal)
		return err
	})
	return c, err
}

// each calls f, on a thread of the namespace, with the addresses that a host
// name and port stand for, until it succeeds or fails at something else than
// dialling. A literal address is dialled on the thread that asks; looking up a
// name, and trying its addresses side by side, is not.
func (d dialer) each(ctx context.Context, address string, f func(literal string) error) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	literals := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		if literals, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
			return err
		}
	}
	for _, literal := range literals {
		err = d.within(func() error { return f(net.JoinHostPort(literal, port)) })
		if dialing, ok := errors.AsType[*net.OpError](err); !ok || dialing.Op != "dial" {
			break
		}
	}
	return err
}
