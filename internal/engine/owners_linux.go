package engine

import (
	"cmp"
	"slices"
	"sync"

	"deadpeer/internal/conn"
)

// join gives the rows of a table their owners, as they are found. Most have
// one, which the row itself holds.
type join struct {
	table   *table
	byInode index

	mu    sync.Mutex // guards the rows' owners, and what follows
	later []laterOwner
}

// laterOwner is one that is not the row's first.
type laterOwner struct {
	row   uint32
	owner conn.Owner
}

func newJoin(t *table) *join {
	j, inode := &join{table: t}, t.inode
	for i := range t.n {
		if row := t.at(i); row.sock.Inode != 0 && !row.skip {
			j.byInode.insert(inode(i), i, inode)
		}
	}
	return j
}

// add books claims. Inode numbers wrap, so that several rows may have the same:
// the cookie decides when one is asked.
func (j *join) add(claims []claim) {
	j.mu.Lock()
	defer j.mu.Unlock()
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
