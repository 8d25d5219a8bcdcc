package engine

import (
	"cmp"
	"slices"
	"sync"

	"deadpeer/internal/conn"
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
			switch row := j.table.at(i); {
			case row.sock.Inode != c.inode || row.ownerN == ^uint16(0):
			case row.ownerN == 0:
				row.owner[0], row.ownerN = c.owner, 1
			default:
				j.later = append(j.later, laterOwner{i, c.owner})
				row.ownerN++
			}
			return false
		})
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
