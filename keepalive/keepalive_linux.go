package keepalive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func soKeepAlive() option { return option{unix.SOL_SOCKET, unix.SO_KEEPALIVE, "SO_KEEPALIVE"} }
func keepIdle() option    { return option{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, "TCP_KEEPIDLE"} }
func keepIntvl() option   { return option{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, "TCP_KEEPINTVL"} }
func keepCnt() option     { return option{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, "TCP_KEEPCNT"} }
func userTimeout() option { return option{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"} }

type setting struct {
	option
	part  Part // "" for SO_KEEPALIVE
	value int
}

// setFD makes one setsockopt an option, in an order in which every state the
// timer can meet is one a living peer survives. With no probe unanswered the
// next expiry only sends one, if interval and count are in place before
// TCP_KEEPIDLE makes it come at once (a host may have them 0: a probe a tick,
// death without a probe). With probes unanswered that expiry could kill while
// the answer is on its way, and no order of options helps, since it comes a
// tick after the last of them: then keepalive is off meanwhile, and switching
// it on arms a whole idle time (tcp_set_keepalive). Hence TCP_INFO is read
// first; more is read only when it tells of such probes, or to judge a user
// timeout beside values that p leaves alone.
func setFD(sock uintptr, p Policy, bestEffort bool) (undone []*PartError, err error) {
	fd := int(sock)
	if err := inForce(fd, p).checkUserTimeout(); err != nil {
		return nil, err
	}
	off, was := false, 0
	if p.Idle > 0 && unanswered(fd) > 0 {
		now, err := get(fd, keepIdle())
		if err != nil {
			return nil, &PartError{PartIdle, err}
		}
		if was, err = get(fd, soKeepAlive()); err != nil {
			return nil, err
		}
		if was != 0 && now == wholes(p.Idle, time.Second) {
			p.Idle = 0 // even the same value would make the timer fire
		} else {
			off = true
		}
	}
	var buf [7]setting
	todo := buf[:0]
	if off {
		todo = append(todo, setting{soKeepAlive(), "", 0})
	}
	if p.UserTimeout == 0 {
		todo = append(todo, setting{userTimeout(), PartUserTimeout, 0})
	}
	if p.Interval > 0 {
		todo = append(todo, setting{keepIntvl(), PartInterval, wholes(p.Interval, time.Second)})
	}
	if p.Probes > 0 {
		todo = append(todo, setting{keepCnt(), PartProbes, p.Probes})
	}
	if !off { // on first: TCP_KEEPIDLE then counts from the time already idle
		todo = append(todo, setting{soKeepAlive(), "", 1})
	}
	if p.Idle > 0 {
		todo = append(todo, setting{keepIdle(), PartIdle, wholes(p.Idle, time.Second)})
	}
	if off {
		todo = append(todo, setting{soKeepAlive(), "", 1})
	}
	for _, s := range todo {
		err := s.set(fd)
		switch {
		case err == nil || s.part == PartUserTimeout && refusedOption(err) && isMPTCP(fd):
			// A socket without the user timeout has it off.
		case bestEffort && s.part != "" && cannot(fd, err):
			undone = append(undone, &PartError{s.part, err})
		default:
			if off && was != 0 {
				err = errors.Join(err, set(fd, soKeepAlive(), 1))
			}
			return nil, s.blame(err)
		}
	}
	if p.UserTimeout <= 0 {
		return undone, nil
	}
	if len(undone) > 0 {
		if err := inForce(fd, Policy{UserTimeout: p.UserTimeout}).checkUserTimeout(); err != nil {
			return append(undone, &PartError{PartUserTimeout, err}), nil
		}
	}
	last := setting{userTimeout(), PartUserTimeout, wholes(p.UserTimeout, time.Millisecond)}
	if err := last.set(fd); bestEffort && err != nil && cannot(fd, err) {
		undone = append(undone, &PartError{PartUserTimeout, err})
	} else if err != nil {
		return nil, last.blame(err)
	}
	return undone, nil
}

func (s setting) set(fd int) error { return set(fd, s.option, s.value) }

func (s setting) blame(err error) error {
	if s.part == "" {
		return err
	}
	return &PartError{s.part, err}
}

// cannot: another socket, or without a filter in the way, would have taken it.
func cannot(fd int, err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || refusedOption(err) && isMPTCP(fd)
}

// inForce fills in what p leaves alone, as far as it is needed to judge the
// user timeout and can be read; what cannot be read stays zero.
func inForce(fd int, p Policy) Policy {
	if p.UserTimeout < 0 {
		p.UserTimeout = readAs(fd, userTimeout(), time.Millisecond)
	}
	if p.UserTimeout == 0 {
		return p
	}
	if p.Idle == 0 {
		p.Idle = readAs(fd, keepIdle(), time.Second)
	}
	if p.Interval == 0 {
		p.Interval = readAs(fd, keepIntvl(), time.Second)
	}
	if p.Probes == 0 {
		p.Probes = int(readAs(fd, keepCnt(), 1))
	}
	return p
}

func readAs(fd int, o option, unit time.Duration) time.Duration {
	v, err := get(fd, o)
	if err != nil {
		return 0
	}
	return time.Duration(v) * unit
}

// unanswered is the kernel's count of unanswered probes, tcpi_probes, the
// fourth byte of struct tcp_info.
func unanswered(fd int) uint8 {
	v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return binary.NativeEndian.AppendUint32(make([]byte, 0, 4), uint32(v))[3]
}

func getFD(sock uintptr) (Settings, error) {
	fd := int(sock)
	on, err := get(fd, soKeepAlive())
	if err != nil {
		return Settings{}, err
	}
	idle, err := get(fd, keepIdle())
	if err != nil {
		return Settings{}, err
	}
	interval, err := get(fd, keepIntvl())
	if err != nil {
		return Settings{}, err
	}
	probes, err := get(fd, keepCnt())
	if err != nil {
		return Settings{}, err
	}
	timeout, err := get(fd, userTimeout())
	if err != nil {
		if !refusedOption(err) || !isMPTCP(fd) {
			return Settings{}, err
		}
		timeout = -1
	}
	return Settings{KeepAlive: on != 0, Policy: Policy{
		Idle:        time.Duration(idle) * time.Second,
		Interval:    time.Duration(interval) * time.Second,
		Probes:      probes,
		UserTimeout: time.Duration(timeout) * time.Millisecond,
	}}, nil
}

func disableFD(sock uintptr) error { return set(int(sock), soKeepAlive(), 0) }

func get(fd int, o option) (int, error) {
	v, err := unix.GetsockoptInt(fd, o.level, o.name)
	if err != nil {
		return 0, explain(fd, fmt.Errorf("get %s: %w", o.label, err))
	}
	return v, nil
}

func set(fd int, o option, value int) error {
	if err := unix.SetsockoptInt(fd, o.level, o.name, value); err != nil {
		return explain(fd, fmt.Errorf("set %s to %d: %w", o.label, value, err))
	}
	return nil
}

func refusedOption(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP)
}

func isMPTCP(fd int) bool {
	p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && p == unix.IPPROTO_MPTCP
}

// explain adds to a refusal what is needed.
func explain(fd int, err error) error {
	switch {
	case refusedOption(err) && isMPTCP(fd):
		return fmt.Errorf("%w (%w on an MPTCP socket of this kernel: use plain TCP, SetMultipathTCP(false) in package net)", err, errors.ErrUnsupported)
	case refusedOption(err):
		return fmt.Errorf("%w (%w: not a TCP socket)", err, errors.ErrUnsupported)
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (it needs no capability: a seccomp filter, cgroup BPF program or security module refuses it)", err)
	default:
		return err
	}
}
