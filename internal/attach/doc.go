// Package attach puts keepalive policies on sockets of programs that are
// already running, and gives those sockets their own values back.
//
// What each socket had is in a file before anything is changed
// (journal.Attachment), and stays there for as long as the policy does:
//
//	t := attach.Getfd()
//	defer t.Close()
//	r := attach.Run{Transport: t, File: file}
//	err := r.Attach(ctx, items, report)
//	err = r.TakeOver()
//	err = r.Detach(ctx, targets, report) // later, by another process
//
// No living connection suffers: the options go on in the order of
// keepalive.Set, a connection whose probes are going unanswered is left alone
// when the policy would hardly ask again, and a user timeout goes on only
// where its clock has not begun to run ([Wait], [TimeoutWait]).
//
// There are two transports with equal results: duplicates of descriptors by
// pidfd_getfd(2) (Linux 5.6, CAP_SYS_PTRACE for other users' programs), and a
// BPF iterator over all sockets of a network namespace, which the engine has.
// Elsewhere than on Linux there is none.
package attach

import (
	"context"
	"errors"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// Target is a socket, and the descriptors that may hold it.
type Target struct {
	ID     conn.ID
	Owners []conn.Owner
}

// Transport reads and changes settings of sockets that are not ours. Each call
// reports every target by its index, in any order; an error that matches
// ErrGone says that the socket was not found, one that matches ErrDiffers that
// it was left alone because it had other settings than a Change says.
type Transport interface {
	// Look reads settings.
	Look(ctx context.Context, targets []Target, report func(i int, s keepalive.Settings, err error))
	// Set does what keepalive.SetFD does with Settings.Policy.
	Set(ctx context.Context, changes []Change, report func(i int, err error))
	// Restore does what keepalive.RestoreFD does, and reads the settings again.
	Restore(ctx context.Context, changes []Change, report func(i int, err error))
}

// Change is what a socket is to be given.
type Change struct {
	Target   Target
	Settings keepalive.Settings
	// Conditional: only if it has Was.
	Conditional bool
	Was         keepalive.Settings
}

// Item is a connection to attach: the socket as the kernel lists it now, and
// the policy it is to get. A negative user timeout leaves that as it is.
type Item struct {
	Target Target
	Sock   conn.Sock
	Rule   uint16
	Policy keepalive.Policy
	// Found is what the socket had when it was listed, if Known: it need not be
	// looked at again before it is changed, if it still has that.
	Found keepalive.Settings
	Known bool
}

// ErrGone says that a socket was not found.
const ErrGone = outcome("it has ended, or no process holds it any more")

// ErrDiffers says that a socket was left alone because it had not what it was
// to have.
const ErrDiffers = outcome("its settings have changed meanwhile")

type outcome string

// Error says so in words.
func (e outcome) Error() string { return string(e) }

// The greatest values that can be set (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL,
// MAX_TCP_KEEPCNT of net/tcp.h); sysctls go beyond.
const (
	longest   = 32767 * time.Second
	maxProbes = 127
)

// valuesOf gives settings as the file has them.
func valuesOf(s keepalive.Settings) journal.Values {
	return journal.Values{
		KeepAlive: s.KeepAlive, Idle: int32(s.Idle / time.Second), Interval: int32(s.Interval / time.Second),
		Probes: int32(s.Probes), UserTimeout: int32(s.UserTimeout / time.Millisecond),
	}
}

// settingsOf is the reverse of valuesOf.
func settingsOf(v journal.Values) keepalive.Settings {
	return keepalive.Settings{KeepAlive: v.KeepAlive, Policy: keepalive.Policy{
		Idle: time.Duration(v.Idle) * time.Second, Interval: time.Duration(v.Interval) * time.Second,
		Probes: int(v.Probes), UserTimeout: time.Duration(v.UserTimeout) * time.Millisecond,
	}}
}

// with is what a socket has after the policy was set on it.
func with(s keepalive.Settings, p keepalive.Policy) keepalive.Settings {
	s.KeepAlive = true
	if p.Idle > 0 {
		s.Idle = roundUp(p.Idle, time.Second)
	}
	if p.Interval > 0 {
		s.Interval = roundUp(p.Interval, time.Second)
	}
	if p.Probes > 0 {
		s.Probes = p.Probes
	}
	if p.UserTimeout >= 0 {
		s.UserTimeout = roundUp(p.UserTimeout, time.Millisecond)
	}
	return s
}

// After is what a socket that has the settings found has with the policy on it,
// or why that cannot be: an [*UnfitError] for a user timeout.
func After(found keepalive.Settings, p keepalive.Policy) (keepalive.Settings, error) {
	if found.UserTimeout < 0 {
		return found, errors.New("it has no user timeout that could be read")
	}
	set := with(found, p)
	var fatal *keepalive.PolicyError
	if err := set.Validate(); errors.As(err, &fatal) && fatal.Field == string(keepalive.PartUserTimeout) {
		return found, &UnfitError{Own: p.UserTimeout < 0, Err: fatal}
	}
	return set, nil
}

// UnfitError says that a user timeout would end a connection before its probes
// are spent.
type UnfitError struct {
	Own bool  // it is the program's own, not the policy's
	Err error // says it at length, with the numbers
}

// Error is short, for a table; Err is not.
func (e *UnfitError) Error() string {
	if e.Own {
		return "own timeout too short"
	}
	return "timeout too short"
}

// Unwrap gives Err.
func (e *UnfitError) Unwrap() error { return e.Err }

func roundUp(d, unit time.Duration) time.Duration { return (d + unit - 1) / unit * unit }

// Own is the record of a socket whose program would have other values by now,
// were it not attached.
func Own(a journal.Attached, would func(keepalive.Settings) keepalive.Settings) journal.Attached {
	a.Was = valuesOf(would(settingsOf(a.Was)))
	return a
}

// Given is the record of a socket that got a policy from elsewhere before its
// program had it. An older attachment, of which the newest come first, may have
// it nevertheless, since it was being connected.
func Given(id conn.ID, rule uint16, before keepalive.Settings, p keepalive.Policy, older []*journal.Attachment) journal.Attached {
	found := valuesOf(before)
	r := Run{Older: older}
	return journal.Attached{ID: id, Rule: rule, Was: r.before(id, found), Found: found, Set: valuesOf(with(before, p))}
}
