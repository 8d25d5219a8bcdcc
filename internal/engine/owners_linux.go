package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/procfd"
)

// claim is a descriptor found for a socket.
type claim struct {
	socket bpf.Handle // Place is 0 when it was not told
	owner  conn.Owner
}

// claims are the descriptors that were found, by inode: open addressing with
// linear probing. They hold no pointers. The zero claims are empty.
type claims struct {
	places []claim // one whose inode is 0 is free
	n      int
}

func (c *claims) add(one claim) {
	if one.socket.Inode == 0 {
		return // no socket has that
	}
	if c.n >= len(c.places)/8*7 {
		old := c.places
		c.places = make([]claim, max(1<<10, 2*len(old)))
		for i := 0; i < len(c.places); i += os.Getpagesize() / int(unsafe.Sizeof(claim{})) {
			c.places[i] = claim{} // a page read before it is written faults twice, once on all processors
		}
		for _, one := range old {
			if one.socket.Inode != 0 {
				c.put(one)
			}
		}
	}
	c.put(one)
	c.n++
}

func (c *claims) put(one claim) {
	mask := uint32(len(c.places) - 1)
	p := spread(uint64(one.socket.Inode)) & mask
	for c.places[p].socket.Inode != 0 {
		p = (p + 1) & mask
	}
	c.places[p] = one
}

// appendOwners appends the owners of a socket, by pid and descriptor. Inode
// numbers wrap, so that several sockets may have the same: by their places they
// are told apart, and without them the cookie decides when one is asked.
func (c *claims) appendOwners(list []conn.Owner, inode, place uint32) []conn.Owner {
	if c.n == 0 || inode == 0 {
		return list
	}
	first := len(list)
	mask := uint32(len(c.places) - 1)
	for p := spread(uint64(inode)) & mask; c.places[p].socket.Inode != 0; p = (p + 1) & mask {
		if one := &c.places[p]; one.socket.Inode == inode && (one.socket.Place == place || one.socket.Place == 0 || place == 0) {
			list = append(list, one.owner)
		}
	}
	if len(list) > first+1 {
		slices.SortFunc(list[first:], func(a, b conn.Owner) int {
			return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.FD, b.FD))
		})
	}
	return list
}

// prefetch begins to bring in what appendOwners will look at: done for several
// sockets before it, they are waited for together. What it gives tells nothing.
func (c *claims) prefetch(inode uint32) uint32 {
	if c.n == 0 {
		return 0
	}
	return c.places[spread(uint64(inode))&uint32(len(c.places)-1)].socket.Inode
}

// own gives a row its owners.
func (s *Snapshot) own(row *row, c *claims) {
	first := len(s.owners)
	s.owners = c.appendOwners(s.owners, row.sock.Inode, row.place)
	n := len(s.owners) - first
	row.ownerN = uint16(min(n, 1<<16-1))
	if row.owners = uint32(first); n == 1 { // the usual; it needs no memory of its own
		row.owner[0] = s.owners[first]
		s.owners = s.owners[:first]
	}
}

// ownerSearch looks for the owners of connections while the kernel lists them:
// by a BPF program, else in procfs.
type ownerSearch struct {
	cancel func()
	done   chan struct{} // closed at the end, then what follows is set
	claims claims
	took   time.Duration
	byBPF  bool
	why    error // why BPF was not used although it was wanted
	stats  procfd.Stats
	err    error
}

// search begins to look for owners. Stop it.
func (r *run) search(ctx context.Context) *ownerSearch {
	ctx, cancel := context.WithCancel(ctx)
	s := &ownerSearch{cancel: cancel, done: make(chan struct{})}
	start := time.Now()
	go func() {
		defer close(s.done)
		if r.sockets != nil {
			s.why = r.sockets.Descriptors(ctx, func(d bpf.Descriptor) { s.claims.add(claim{d.Handle, d.Owner}) })
			s.byBPF = s.why == nil
		}
		if !s.byBPF {
			s.claims = claims{}
			s.stats, s.err = s.claims.walk(ctx, r.proc)
		}
		s.took = time.Since(start)
	}()
	return s
}

func (s *ownerSearch) stop() {
	s.cancel()
	<-s.done
}

// walk finds the sockets of all processes in procfs.
func (c *claims) walk(ctx context.Context, proc *procfd.FS) (procfd.Stats, error) {
	const batchLen = 256 // claims of one worker are added at a time
	var mu sync.Mutex
	add := func(batch []claim) {
		mu.Lock()
		defer mu.Unlock()
		for _, one := range batch {
			c.add(one)
		}
	}
	workers := runtime.GOMAXPROCS(0)
	batches := make([][]claim, workers)
	stats, err := proc.Sockets(ctx, procfd.SocketsOptions{Workers: workers}, func(worker int, inode uint32, o conn.Owner) {
		b := append(batches[worker], claim{bpf.Handle{Inode: inode}, o})
		if len(b) == batchLen {
			add(b)
			b = b[:0]
		}
		batches[worker] = b
	})
	for _, b := range batches {
		add(b)
	}
	return stats, err
}

// found waits for the owners and says how they were found.
func (r *run) found(s *ownerSearch) error {
	<-s.done
	if s.err != nil {
		return errors.Join(s.why, fmt.Errorf("find owners: %w", s.err))
	}
	r.hidden = s.stats.Missing()
	r.confined = !s.byBPF && effective()&(1<<unix.CAP_SYS_PTRACE) == 0
	if s.why != nil {
		r.withoutBPF(s.why)
	}
	how := "by BPF"
	if !s.byBPF {
		how = "in " + r.e.options.ProcRoot
	}
	r.took(s.took, "found the owners %s", how)
	return nil
}

// findOwners gives the rows of the table, complete now, their owners.
func (r *run) findOwners(s *ownerSearch) error {
	if err := r.found(s); err != nil {
		return err
	}
	for i := range r.snap.table.n {
		row := r.snap.table.at(i)
		r.snap.own(row, &s.claims)
		r.name(r.snap.ownersOf(row))
	}
	return nil
}

// name reads what is to be known of owners.
func (r *run) name(owners []conn.Owner) {
	for _, o := range owners {
		if at := uint32(o.PID) % uint32(len(r.named)); r.named[at] != o.PID {
			r.process(o.PID)
			r.named[at] = o.PID
		}
	}
}

// process reads what there is to know of a process, once.
func (r *run) process(pid int32) {
	if r.snap.Process(pid) != nil {
		return
	}
	p, err := r.proc.Process(pid)
	if err != nil {
		p = conn.Process{PID: pid} // it has ended
	}
	r.snap.processes.add(&p)
}
