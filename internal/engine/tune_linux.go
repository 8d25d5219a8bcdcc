package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/host"
	"deadpeer/internal/journal"
	"deadpeer/internal/netns"
	"deadpeer/internal/probe"
)

// Tuning reads the keepalive defaults of a network namespace and what the
// next boot will set. It changes nothing. Needs nothing, and CAP_SYS_ADMIN to
// look into another namespace.
func (e *Engine) Tuning(_ context.Context, r TuneRequest) (Tuning, error) {
	h, done, err := e.host(r.Netns)
	if err != nil {
		return Tuning{}, err
	}
	defer done()
	return h.Show()
}

// Tune sets the keepalive defaults of a network namespace, and of the next
// boot where they come from this host's files. Then it counts the connections
// that keep their old expiry, and re-arms them when the request says so: from
// then on they have the new idle time before them. That sends nothing, so
// protected connections are not left out. Needs CAP_NET_ADMIN over the
// namespace and the right to write to /etc/sysctl.d and the state folder;
// CAP_SYS_PTRACE to count and re-arm connections of other users' programs.
func (e *Engine) Tune(ctx context.Context, r TuneRequest) (t Tuned, err error) {
	h, done, err := e.host(r.Netns)
	if err != nil {
		return t, err
	}
	defer done()
	before, err := h.Show()
	if err != nil {
		return t, err
	}
	if r.DryRun {
		t.TunePlan, err = h.Plan(r.Change)
	} else {
		t.TunePlan, err = h.Set(ctx, r.Change)
	}
	if err != nil {
		return t, err
	}
	t.Done = true
	was, ok := before.Part(host.Idle)
	if !ok {
		return t, nil
	}
	old := olds{idle: time.Duration(was.Now()) * time.Second}
	old.follows = old.idle
	if v, ok := r.Change.Values[host.Idle]; ok {
		old.idle = time.Duration(v) * time.Second
	}
	if !r.DryRun {
		old.follows = old.idle // a getsockopt tells the host's value of now
	}
	if !r.DryRun {
		// The host is changed: an interrupt must not leave half a count.
		var done context.CancelFunc
		ctx, done = context.WithTimeout(context.WithoutCancel(ctx), defaultTimeout)
		defer done()
	}
	return t, e.tuneExisting(ctx, r, old, &t)
}

// Untune puts back what Tune changed for the first time; see host.Restore.
func (e *Engine) Untune(ctx context.Context, r TuneRequest) (TuneOriginal, error) {
	h, done, err := e.host(r.Netns)
	if err != nil {
		return TuneOriginal{}, err
	}
	defer done()
	if r.DryRun {
		return h.PlanRestore()
	}
	return h.Restore(ctx)
}

// host opens the host's defaults as one network namespace has them.
func (e *Engine) host(name string) (h *host.Host, done func(), err error) {
	if name == "all" {
		return nil, nil, errors.New("open network namespace: all is not one: give a name in /run/netns, a path or a pid")
	}
	n, err := e.namespace(name)
	if err != nil {
		return nil, nil, err
	}
	boot, err := e.booted(n, name)
	if err == nil {
		h, err = host.New(host.Options{
			Root: e.options.Root, StateDir: e.options.StateDir,
			Netns: &host.Namespace{Inode: n.Inode(), Cookie: netnsCookie(n), Do: n.Do, Boot: boot},
		})
	}
	if err != nil {
		return nil, nil, errors.Join(err, n.Close())
	}
	return h, func() { _ = n.Close() }, nil
}

// booted reports whether the host's files set the values of a namespace at
// boot: whether it is that of process 1. Where that cannot be told, the
// current one is taken for it.
func (e *Engine) booted(n *netns.NS, name string) (bool, error) {
	var st unix.Stat_t
	if unix.Stat(filepath.Join(e.options.ProcRoot, "1/ns/net"), &st) == nil {
		return uint32(st.Ino) == n.Inode(), nil
	}
	if name == "" || name == "current" {
		return true, nil
	}
	current, err := netns.Current()
	if err != nil {
		return false, err
	}
	return current.Inode() == n.Inode(), current.Close()
}

// netnsCookie tells a namespace from a later one with its inode number
// (SO_NETNS_COOKIE, Linux 5.14); 0 where the kernel does not say.
func netnsCookie(n *netns.NS) (cookie uint64) {
	_ = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return cookie
}

// olds tells which connections keep their old expiry.
type olds struct {
	follows time.Duration // the idle time that a socket shows that follows the host
	idle    time.Duration // the one that is wanted
}

// is reports whether the timer of c runs longer than the wanted idle time by
// the host's value; known is false when that depends on what cannot be read.
// One with a value of its own that happens to be the wanted one is never armed
// for longer. A retransmission or persist timer hides for how long.
func (o olds) is(c *Connection) (old, known bool) {
	switch c.Sock.State {
	case conn.Established, conn.CloseWait, conn.FinWait2:
	default:
		return false, true
	}
	switch {
	case c.Sock.Inode == 0, c.KeepAliveKnown && !c.Settings.KeepAlive,
		c.Sock.Timer == conn.TimerKeepalive && ms(c.Sock.TimerMS) <= o.idle,
		c.Sock.Timer == conn.TimerNone:
		return false, true
	case !c.Known:
		return false, false
	}
	return c.Settings.KeepAlive && c.Settings.Idle == o.follows, true
}

func (e *Engine) tuneExisting(ctx context.Context, r TuneRequest, old olds, t *Tuned) error {
	snap, err := e.Scan(ctx, Request{Netns: r.Netns})
	if err != nil {
		return fmt.Errorf("count connections that keep their old expiry: %w", err)
	}
	x := &t.Existing
	x.Looked, x.Left = true, map[string]int{}
	t.Notes = append(t.Notes, snap.Notes...)
	var targets []probe.Target
	for c := range snap.All() {
		is, known := old.is(c)
		if !known {
			x.Unseen++
		}
		if !is {
			continue
		}
		x.Old++
		targets = append(targets, probe.Target{ID: c.Sock.ID(), State: c.Sock.State, Owners: slices.Clone(c.Owners)})
	}
	if !r.Existing || r.DryRun || len(targets) == 0 {
		return nil
	}
	return e.rearm(ctx, targets, old.idle, func(refusal probe.Refusal) {
		if refusal == probe.NotRefused {
			x.Rearmed++
		} else {
			x.Left[refusal.Error()]++
		}
	})
}

// rearmBatch connections share one write to the journal.
const rearmBatch = 256

func (e *Engine) rearm(ctx context.Context, targets []probe.Target, idle time.Duration, report func(probe.Refusal)) (err error) {
	e.asking.Lock()
	defer e.asking.Unlock()
	if _, err := e.recover(ctx); err != nil {
		return fmt.Errorf("re-arm connections: %w", err)
	}
	j, err := journal.Open(e.options.RuntimeDir, journal.Options{})
	if err != nil {
		return fmt.Errorf("re-arm connections: %w", err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	lock, err := journal.Lock(ctx, e.options.RuntimeDir)
	if err != nil {
		return fmt.Errorf("re-arm connections: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	a := probe.New(probe.Options{Journal: j, Step: e.options.Step})
	defer func() { err = errors.Join(err, a.Close()) }()
	for batch := range slices.Chunk(targets, rearmBatch) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.Rearm(batch, idle, func(_ int, r probe.Refusal) { report(r) })
	}
	return nil
}
