package engine

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"deadpeer/internal/conn"
	"deadpeer/internal/procfd"
)

// claim is an owner found for a socket.
type claim struct {
	inode uint32
	owner conn.Owner
}

// join gives the rows of a table their owners, as they are found. Most have
// one, which the row itself holds.
type join struct {
	table *table

	mu      sync.Mutex // guards what follows, and the owners of the rows
	byInode *index     // nil until the table is complete
	waiting [][]claim  // until then
	later   []laterOwner
}

// laterOwner is one that is not the row's first.
type laterOwner struct {
	row   uint32
	owner conn.Owner
}

// begin is to be called when the table is complete, with an index by inode.
func (j *join) begin(byInode *index) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.byInode = byInode
	for _, claims := range j.waiting {
		j.settle(claims)
	}
	j.waiting = nil
}

// add books claims, which stay the caller's.
func (j *join) add(claims []claim) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.byInode == nil {
		j.waiting = append(j.waiting, slices.Clone(claims))
		return
	}
	j.settle(claims)
}

// settle finds the rows of claims. Inode numbers wrap, so that several rows may
// have the same: the cookie decides when one is asked.
func (j *join) settle(claims []claim) {
	for _, c := range claims {
		j.byInode.find(uint64(c.inode), func(i uint32) bool {
			if j.table.at(i).sock.Inode == c.inode {
				j.give(i, c.owner)
			}
			return false
		})
	}
}

// give adds an owner to a row.
func (j *join) give(i uint32, o conn.Owner) {
	switch row := j.table.at(i); row.ownerN {
	case ^uint16(0):
	case 0:
		row.owner[0], row.ownerN = o, 1
	default:
		j.later = append(j.later, laterOwner{i, o})
		row.ownerN++
	}
}

// gather gives the owners of the rows that have several, by pid and descriptor,
// and tells those rows where theirs are.
func (j *join) gather() (all []conn.Owner) {
	slices.SortFunc(j.later, func(a, b laterOwner) int { return cmp.Compare(a.row, b.row) })
	for n, l := range j.later {
		row := j.table.at(l.row)
		if n == 0 || j.later[n-1].row != l.row {
			row.owners = uint32(len(all))
			all = append(all, row.owner[0])
		}
		all = append(all, l.owner)
		if len(all)-int(row.owners) == int(row.ownerN) {
			slices.SortFunc(all[row.owners:], func(a, b conn.Owner) int {
				return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.FD, b.FD))
			})
		}
	}
	return all
}

// ownerWalk is a walk through the descriptors of all processes.
type ownerWalk struct {
	join  *join
	stop  func()
	done  chan struct{} // closed at the end, then what follows is set
	stats procfd.Stats
	err   error
}

// claimBatch claims of one worker are joined with the table at a time.
const claimBatch = 256

// walk begins to look for owners. Stop it.
func (r *run) walk(ctx context.Context) *ownerWalk {
	ctx, cancel := context.WithCancel(ctx)
	w := &ownerWalk{join: &join{table: &r.snap.table}, done: make(chan struct{})}
	w.stop = func() {
		cancel()
		<-w.done
	}
	go func() {
		defer close(w.done)
		workers := runtime.GOMAXPROCS(0)
		batches := make([][]claim, workers)
		w.stats, w.err = r.proc.Sockets(ctx, procfd.SocketsOptions{Workers: workers}, func(worker int, inode uint32, o conn.Owner) {
			b := append(batches[worker], claim{inode, o})
			if len(b) == claimBatch {
				w.join.add(b)
				b = b[:0]
			}
			batches[worker] = b
		})
		for _, b := range batches {
			w.join.add(b)
		}
	}()
	return w
}

// findOwners joins what the walk found with the table, by inode.
func (r *run) findOwners(w *ownerWalk) error {
	t := &r.snap.table
	r.index.rebuild(t.n, t.inode) // one index at a time saves memory
	w.join.begin(&r.index)
	<-w.done
	defer r.index.rebuild(t.n, t.cookie)
	if w.err != nil {
		return fmt.Errorf("find owners: %w", w.err)
	}
	r.hidden = w.stats.Missing()
	r.named(w.join)
	return nil
}

// named reads what is to be known of the owners, all of them now found.
func (r *run) named(j *join) {
	r.snap.owners = j.gather()
	for i := range r.snap.table.n {
		for _, o := range r.snap.ownersOf(r.snap.table.at(i)) {
			r.process(o.PID)
		}
	}
}

// process reads what there is to know of a process, once.
func (r *run) process(pid int32) *conn.Process {
	if p, ok := r.snap.processes[pid]; ok {
		return p
	}
	p, err := r.proc.Process(pid)
	if err != nil {
		p = conn.Process{PID: pid} // it has ended
	}
	r.snap.processes[pid] = &p
	return &p
}
