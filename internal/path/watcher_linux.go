package path

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// groups are the notifications to get: for bind(2), bit n-1 for RTNLGRP n.
const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) |
	1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1) |
	1<<(unix.RTNLGRP_NEXTHOP-1)

// receiveBuffer is for bursts of notifications, which are lost beyond it.
const receiveBuffer = 8 << 20

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// watcher is the goroutine that keeps a Paths up to date.
type watcher struct {
	paths  *Paths
	events *os.File
	raw    syscall.RawConn
	asker  *rtnl // its own, so that it never waits for callers of Route
	buf    []byte
	quit   chan struct{}
	ended  sync.WaitGroup
}

// newWatcher subscribes in the network namespace of the calling thread.
func newWatcher(p *Paths) (*watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	w := &watcher{paths: p, events: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, bufferSize), quit: make(chan struct{})}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		// Without CAP_NET_ADMIN, as much as net.core.rmem_max allows.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		err = fmt.Errorf("subscribe to rtnetlink: %w", err)
	} else if w.raw, err = w.events.SyscallConn(); err == nil {
		w.asker, err = dial()
	}
	if err != nil {
		return nil, errors.Join(err, w.events.Close())
	}
	return w, nil
}

// stop ends the goroutine; os.ErrClosed says that it had been stopped.
func (w *watcher) stop() error {
	if err := w.events.Close(); errors.Is(err, os.ErrClosed) {
		return err
	}
	close(w.quit)
	w.ended.Wait()
	return nil
}

func (w *watcher) release() error {
	if err := w.events.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return errors.Join(err, w.asker.close())
	}
	return w.asker.close()
}

// The kernel tells of some changes before lookups see them: of an IPv4 route
// that is deleted before it is taken away (fib_table_delete), of an IPv6 route
// that is added before its node is marked (fib6_add_rt2node). Usually that is
// nanoseconds; the thread that makes the change may be stopped in between. So
// what may have changed is looked at again, twice.
const (
	soon = 50 * time.Millisecond
	late = time.Second
)

// again is what to look at again, one to two delays after it was added.
type again struct {
	delay         time.Duration
	waiting, next changes
	due           time.Time // for what is waiting; else 0
}

func (a *again) add(c *changes) {
	if a.next.add(c); a.waiting.empty() {
		a.turn()
	}
}

// take gives what is due.
func (a *again) take() (c changes) {
	if !a.waiting.empty() && !time.Now().Before(a.due) {
		c = a.waiting
		a.turn()
	}
	return c
}

func (a *again) turn() {
	a.waiting, a.next, a.due = a.next, changes{}, time.Time{}
	if !a.waiting.empty() {
		a.due = time.Now().Add(a.delay)
	}
}

func (w *watcher) run() {
	second, third := again{delay: soon}, again{delay: late}
	for {
		var wake time.Time // never
		for _, a := range []*again{&third, &second} {
			if !a.due.IsZero() && (wake.IsZero() || a.due.Before(wake)) {
				wake = a.due
			}
		}
		if w.events.SetReadDeadline(wake) != nil {
			return // closed
		}
		lost, err := w.receive()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		anew := lost
		for lost {
			w.doubt()
			lost = w.look(context.Background()) != nil
			// Not more often, whatever ails the kernel.
			select {
			case <-w.quit:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
		first := w.pending()
		w.recheck(&first)
		// What was lost may have been told too early as well.
		first.ipv4, first.ipv6 = first.ipv4 || anew, first.ipv6 || anew
		onceMore := second.take()
		w.recheck(&onceMore)
		last := third.take()
		w.recheck(&last)
		second.add(&first)
		third.add(&onceMore)
	}
}

// doubt raises all generations.
func (w *watcher) doubt() {
	w.paths.mu.Lock()
	defer w.paths.mu.Unlock()
	w.paths.world.all = w.paths.world.tick()
}

// receive waits for notifications and applies all there are. lost says that
// some were dropped, or made no sense; err, that the watcher was stopped.
func (w *watcher) receive() (lost bool, err error) {
	err = w.raw.Read(func(fd uintptr) bool {
		got := false
		for {
			n, err := unix.Read(int(fd), w.buf)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return got
			case err != nil: // ENOBUFS
				lost = true
				return true
			}
			got = true
			lost = !w.apply(w.buf[:n]) || lost
		}
	})
	return lost, err
}

// apply takes one datagram of notifications, and reports whether it was whole.
func (w *watcher) apply(b []byte) bool {
	p := w.paths
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		m, rest, ok := next(b)
		if !ok {
			return false
		}
		b = rest
		p.world.apply(m)
	}
	if !p.world.pending.empty() {
		p.epoch++
	}
	return true
}

// look reads everything anew: at first, and when notifications were lost. All
// generations rise.
func (w *watcher) look(ctx context.Context) error {
	p := w.paths
	// Struct ifinfomsg, and a word to leave out the counters.
	linkHead := appendUint32(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, skipStats)
	for range 10 {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := newWorld(p.world.clock) // written by this goroutine only
		torn := false
		for _, list := range []struct {
			kind uint16
			head []byte
		}{
			{unix.RTM_GETLINK, linkHead},
			{unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg)},
			{unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg)},
		} {
			changed, err := w.asker.dump(list.kind, list.head, now.apply)
			if err != nil {
				return fmt.Errorf("list interfaces, addresses and neighbours: %w", err)
			}
			torn = torn || changed
		}
		if torn {
			continue
		}
		now.pending = changes{}
		now.all = now.tick()
		p.mu.Lock()
		p.world = now
		p.epoch++
		clear(p.routes)
		p.mu.Unlock()
		return nil
	}
	return errors.New("list interfaces, addresses and neighbours: they never stopped changing")
}

// pending takes what the notifications said.
func (w *watcher) pending() (c changes) {
	w.paths.mu.Lock()
	defer w.paths.mu.Unlock()
	c, w.paths.world.pending = w.paths.world.pending, changes{}
	return c
}

// recheck asks again for the routes that may have changed. A hop that a peer's
// route has left gets a new generation.
func (w *watcher) recheck(c *changes) {
	p := w.paths
	if c.empty() {
		return
	}
	before := map[key]Route{}
	p.mu.RLock()
	for k, r := range p.routes {
		if c.affects(k, r) {
			before[k] = r
		}
	}
	p.mu.RUnlock()
	for k, old := range before {
		select {
		case <-w.quit:
			return
		default:
		}
		r, err := p.ask(w.asker, k)
		if err == nil && r == old {
			continue
		}
		p.mu.Lock()
		if err == nil {
			p.routes[k] = r
		} else {
			delete(p.routes, k)
		}
		if old.Hop != (Hop{}) {
			p.world.leave(old.Hop)
		}
		p.mu.Unlock()
	}
}

// maxRerouted bounds the memory for hops that were left.
const maxRerouted = 4096

func (w *world) leave(h Hop) {
	if len(w.rerouted) >= maxRerouted {
		clear(w.rerouted)
		w.all = w.tick()
	}
	w.rerouted[h] = w.tick()
}
