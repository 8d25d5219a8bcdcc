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
// [Within] makes the policy from one detection time, [Profiles] has ready ones.
//
// Linux has all of it. Elsewhere, no privilege being needed anywhere:
//
//	macOS          all; the user timeout is TCP_RXT_CONNDROPTIME
//	Windows        all since 10 1709; before, idle and interval by
//	               SIO_KEEPALIVE_VALS, 10 probes (settable since 10 1703), nothing
//	               read back; the user timeout is TCP_MAXRTMS or TCP_MAXRT
//	FreeBSD        all; the user timeout is TCP_MAXUNACKTIME, since 14
//	NetBSD,        all but the user timeout
//	DragonFly,
//	illumos
//	Solaris        the same since 11.4; before, idle, and interval·probes by best effort
//	OpenBSD        on and off only
//
// What a system cannot do is a [*PartError] that names the part and matches
// [errors.ErrUnsupported]; [SetBestEffort] does the rest. On Linux this is
// tested against the kernel, on Windows under Wine 8, which is like one before
// 10 1703 and without a user timeout. For the others the logic is tested
// against a fake of their system calls; the calls themselves are built and
// vetted, not run.
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
	// its own. What the kernel does not tell is negative; UserTimeout is 0 when
	// off.
	Policy
}

// Set switches keepalive on with the policy p. It returns a [*PolicyError]
// for a policy that [Policy.Validate] refuses, or that would be refused once
// the values it leaves alone are read from the socket. It stops at the first
// option that the kernel refuses, which a [*PartError] names; what the system
// cannot do at all is found before anything is changed (but for an MPTCP
// socket of Linux).
//
// If the connection has been idle for longer than p.Idle, Linux probes at
// once. A connection in the middle of probing is not hurried: unless its idle
// time is p.Idle already, the next look at it comes after p.Idle from now, so
// that an answer on its way still counts. Probes that went unanswered before
// count towards p.Probes. For that Linux is asked first how many there are; it
// then gets one call an option.
//
// A user timeout that the connection has already been idle for makes the first
// probe the only one: if it is lost, the connection ends.
//
// macOS, the BSDs and illumos do not count probes: they end a connection at
// the first look that finds idle + interval·probes over. One that has been
// idle for longer than interval·probes is ended so, living peer or not: there,
// set the policy on a new connection, or send something first. On the way from
// one policy to the other that sum is never less than it is at both ends.
// macOS arms keepalive on listeners, too, and ends them: set it on the
// connections they accept.
//
// Zero for the user timeout gives a socket of Windows, where it cannot be
// switched off, what a fresh socket has.
func Set(c syscall.Conn, p Policy) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach socket: %w", err)
	}
	// Not by control: one closure less, for those who set it on every accept.
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = SetFD(fd, p) }); err != nil {
		return fmt.Errorf("reach socket: %w", err)
	}
	return inner
}

// SetFD is [Set] for a descriptor, which stays the caller's. On Linux it does
// not allocate unless it fails.
func SetFD(fd uintptr, p Policy) error {
	_, err := setChecked(fd, p, false)
	return err
}

// SetBestEffort is [Set] but for what the system or this kind of socket cannot
// do: it sets the rest and tells what it left undone. The error is for what
// stops all of it, such as a bad policy or a closed connection. A user timeout
// that would be fatal beside an idle time, interval or probe count that could
// not be set is left undone, too.
func SetBestEffort(c syscall.Conn, p Policy) (undone []*PartError, err error) {
	err = control(c, func(fd uintptr) (err error) {
		undone, err = SetBestEffortFD(fd, p)
		return err
	})
	return undone, err
}

// SetBestEffortFD is [SetBestEffort] for a descriptor, which stays the
// caller's.
func SetBestEffortFD(fd uintptr, p Policy) (undone []*PartError, err error) {
	return setChecked(fd, p, true)
}

func setChecked(fd uintptr, p Policy, bestEffort bool) ([]*PartError, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("set keepalive: %w", err)
	}
	undone, err := setFD(fd, p, bestEffort)
	if err != nil {
		return nil, fmt.Errorf("set keepalive: %w", err)
	}
	return undone, nil
}

// Get reads the settings in force. Where the system does not tell all of them
// (Windows before 10 1709, OpenBSD, Solaris before 11.4) the error matches
// [errors.ErrUnsupported] and names what is missing, which is negative in
// Settings; the rest is good.
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
	s, err := getFD(fd)
	if err != nil {
		return s, fmt.Errorf("get keepalive: %w", err)
	}
	return s, nil
}

// Restore puts settings back that [Get] read, without judging them: no policy
// is refused here. It sets what differs, so that what the socket has from its
// host stays the host's, and leaves alone what is negative in s. A value that
// came from the host but cannot be set (a sysctl goes beyond what setsockopt
// takes) is a [*PartError], after the rest has been put back. Like [Set] it
// leaves a peer in the middle of probing time to answer.
func Restore(c syscall.Conn, s Settings) error {
	return control(c, func(fd uintptr) error { return RestoreFD(fd, s) })
}

// RestoreFD is [Restore] for a descriptor, which stays the caller's.
func RestoreFD(fd uintptr, s Settings) error {
	if err := restoreFD(fd, s); err != nil {
		return fmt.Errorf("restore keepalive: %w", err)
	}
	return nil
}

// Heard tells how long ago anything arrived from the peer: on Linux the
// smaller of tcpi_last_data_recv and tcpi_last_ack_recv (tcp(7)), exact to a
// tick, and an upper bound, since a peer's own keepalive probes move neither;
// on FreeBSD tcpi_last_data_recv, which every segment moves (tcp_fill_info),
// and which begins at 0 again every 71 minutes (2³² µs). Other systems do not
// tell: the error matches [errors.ErrUnsupported]. A socket that is not
// connected gives ENOTCONN.
func Heard(c syscall.Conn) (time.Duration, error) {
	var d time.Duration
	err := control(c, func(fd uintptr) (err error) {
		d, err = HeardFD(fd)
		return err
	})
	return d, err
}

// HeardFD is [Heard] for a descriptor, which stays the caller's.
func HeardFD(fd uintptr) (time.Duration, error) {
	d, err := heardFD(fd)
	if err != nil {
		return 0, fmt.Errorf("tell when the peer was heard: %w", err)
	}
	return d, nil
}

// Disable switches keepalive off (SO_KEEPALIVE in socket(7)) and leaves its
// values and the user timeout. An idle connection is then never given up.
func Disable(c syscall.Conn) error { return control(c, DisableFD) }

// DisableFD is [Disable] for a descriptor, which stays the caller's.
func DisableFD(fd uintptr) error {
	if err := disableFD(fd); err != nil {
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
