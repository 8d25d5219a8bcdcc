package engine

import (
	"deadpeer/internal/conn"
)

// chunkLen rows are allocated at a time, so that a growing table copies
// nothing. As many of them fill whole pages of the runtime.
const chunkLen = 1024

// table holds the connections of one run. Rows hold no pointers; a row keeps
// its number and its address for as long as the table lives.
type table struct {
	chunks [][]row
	n      uint32
	asked  []asking // by row; nil while nobody asks: who only looks pays for none
}

// row is one connection as first seen.
type row struct {
	sock     conn.Sock
	read     reading       // when
	owner    [1]conn.Owner // the first that was found
	owners   uint32        // where all of them are in Snapshot.owners, when there are several
	place    uint32        // of its struct socket (bpf.Handle); 0 when not told
	settings uint32        // one more than where they are in Snapshot.settings; 0 while not known
	number   uint32        // its own
	ownerN   uint16
	reuses   bool // carries SO_REUSEADDR, as far as was told
	skip     bool // fails the filter; stays only because rows do not move
	foreseen bool // blind is known
	blind    bool // the kernel would never give it up, when the filter was asked
}

func (t *table) at(i uint32) *row { return &t.chunks[i/chunkLen][i%chunkLen] }

// add keeps a row.
func (t *table) add(r *row) uint32 {
	if t.n%chunkLen == 0 && int(t.n/chunkLen) == len(t.chunks) {
		t.chunks = append(t.chunks, make([]row, chunkLen))
	}
	i := t.n
	t.n++
	kept := t.at(i)
	*kept = *r
	kept.number = i
	return i
}

// startAsking makes room for what asking brings. No row is added after it.
func (t *table) startAsking() { t.asked = make([]asking, t.n) }

// asking is what asking the row has brought. Only after startAsking.
func (t *table) asking(r *row) *asking { return &t.asked[r.number] }

// cookie is the key of row i for an index by cookie.
func (t *table) cookie(i uint32) uint64 { return t.at(i).sock.Cookie }

// truncate forgets the rows from n on.
func (t *table) truncate(n uint32) { t.n = n }

// index finds rows by a 64-bit key. Open addressing with linear probing over
// row numbers plus one: four bytes a place, and the keys stay in the rows. The
// zero index is empty.
type index struct {
	places []uint32
	n      uint32
}

// spread is the finalizer of MurmurHash3: cookies and inodes are sequential.
func spread(key uint64) uint32 {
	key ^= key >> 33
	key *= 0xff51afd7ed558ccd
	key ^= key >> 33
	return uint32(key)
}

// find calls match with the rows that may have the key until it returns true.
func (x *index) find(key uint64, match func(i uint32) bool) {
	if x.n == 0 {
		return
	}
	mask := uint32(len(x.places) - 1)
	for p := spread(key) & mask; x.places[p] != 0; p = (p + 1) & mask {
		if match(x.places[p] - 1) {
			return
		}
	}
}

// insert adds row i; keyOf gives the keys of those already there.
func (x *index) insert(key uint64, i uint32, keyOf func(i uint32) uint64) {
	if int(x.n) >= len(x.places)/4*3 {
		old := x.places
		*x = index{places: make([]uint32, max(16, 2*len(old)))}
		for _, place := range old {
			if place != 0 {
				x.put(keyOf(place-1), place-1)
			}
		}
	}
	x.put(key, i)
}

func (x *index) put(key uint64, i uint32) {
	mask := uint32(len(x.places) - 1)
	p := spread(key) & mask
	for x.places[p] != 0 {
		p = (p + 1) & mask
	}
	x.places[p] = i + 1
	x.n++
}

// rebuild starts anew with the first n rows.
func (x *index) rebuild(n uint32, keyOf func(i uint32) uint64) {
	clear(x.places)
	x.n = 0
	for i := range n {
		x.put(keyOf(i), i)
	}
}
