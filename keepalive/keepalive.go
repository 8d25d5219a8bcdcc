// Package keepalive tells the TCP stack how to find out that a peer is gone,
// and reads what it was told.
//
// A [Policy] is set on a connection with [Set], or before it exists with
// [Policy.Control], which fits net.Dialer and net.ListenConfig:
//
//	p := keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 6}
//	d := net.Dialer{Control: p.Control, KeepAlive: -1}
//
// KeepAlive: -1 matters: without it package net puts its own keepalive (15 s,
// 15 s, 9 probes) on the connection after Control has run.
//
// Linux only for now; elsewhere every call that touches a socket returns an
// error matching [errors.ErrUnsupported]. No privilege is needed.
//
// Keepalive proves the next TCP endpoint, which may be a proxy that answers
// for a dead machine behind it. While data is in flight it is silent, and the
// retransmission limit or the user timeout decides (tcp(7), RFC 9293 section
// 3.8.4).
package keepalive

import (
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Policy is what the stack is told. Durations are rounded up, idle and
// interval to whole seconds, the user timeout to whole milliseconds.
type Policy struct {
	// Idle is the silence after which the first probe goes out
	// (TCP_KEEPIDLE in tcp(7)). Zero leaves it as it is.
	Idle time.Duration
	// Interval is the time between probes, and from the last one to giving up
	// (TCP_KEEPINTVL). Zero leaves it as it is.
	Interval time.Duration
	// Probes is how many must go unanswered (TCP_KEEPCNT). Zero leaves it as
	// it is.
	Probes int
	// UserTimeout is how long data may go unacknowledged (TCP_USER_TIMEOUT,
	// RFC 5482). Linux then looks at it instead of Probes, too
	// (tcp_keepalive_timer). Zero switches it off, negative leaves it as it is.
	UserTimeout time.Duration
}

// Settings are what the kernel holds for one socket.
type Settings struct {
	KeepAlive bool // SO_KEEPALIVE is on
	// Policy has the values in force, the host's where the socket has none of
	// its own. UserTimeout is 0 when off and negative when the kernel does not
	// tell (MPTCP).
	Policy
}

// Set switches keepalive on with the policy p. It returns a [*PolicyError]
// for a policy that [Policy.Validate] refuses, or that would be refused once
// the values it leaves alone are read from the socket. It stops at the first
// option that the kernel refuses.
//
// If the connection has been idle for longer than p.Idle, Linux probes at
// once. A connection in the middle of probing is not hurried: unless its idle
// time is p.Idle already, the next look at it comes after p.Idle from now, so
// that an answer on its way still counts. Probes that went unanswered before
// count towards p.Probes.
//
// A user timeout that the connection has already been idle for makes the first
// probe the only one: if it is lost, the connection ends.
func Set(c syscall.Conn, p Policy) error {
	return control(c, func(fd uintptr) error { return SetFD(fd, p) })
}

// SetFD is [Set] for a descriptor, which stays the caller's.
func SetFD(fd uintptr, p Policy) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	if err := setFD(int(fd), p); err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	return nil
}

// Get reads the settings in force.
func Get(c syscall.Conn) (Settings, error) {
	var s Settings
	err := control(c, func(fd uintptr) (err error) {
		s, err = GetFD(fd)
		return err
	})
	return s, err
}

// GetFD is [Get] for a descriptor, which stays the caller's. It does not
// allocate unless it fails.
func GetFD(fd uintptr) (Settings, error) {
	s, err := getFD(int(fd))
	if err != nil {
		return Settings{}, fmt.Errorf("get keepalive: %w", err)
	}
	return s, nil
}

// Disable switches keepalive off (SO_KEEPALIVE in socket(7)) and leaves its
// values and the user timeout. An idle connection is then never given up.
func Disable(c syscall.Conn) error { return control(c, DisableFD) }

// DisableFD is [Disable] for a descriptor, which stays the caller's.
func DisableFD(fd uintptr) error {
	if err := disableFD(int(fd)); err != nil {
		return fmt.Errorf("disable keepalive: %w", err)
	}
	return nil
}

// Control sets the policy on a socket before it connects or listens, as the
// Control field of net.Dialer and net.ListenConfig wants it. Networks other
// than TCP are left alone. Set the KeepAlive field beside it to -1. On Linux
// the connections that a listener accepts inherit its options.
func (p Policy) Control(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	return rawControl(c, func(fd uintptr) error { return SetFD(fd, p) })
}

func control(c syscall.Conn, f func(fd uintptr) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach socket: %w", err)
	}
	return rawControl(raw, f)
}

func rawControl(c syscall.RawConn, f func(fd uintptr) error) error {
	var err error
	if controlErr := c.Control(func(fd uintptr) { err = f(fd) }); controlErr != nil {
		return fmt.Errorf("reach socket: %w", controlErr)
	}
	return err
}
