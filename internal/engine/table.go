package engine

import (
	"deadpeer/internal/conn"
)

// chunkLen rows are allocated at a time, so that a growing table copies and
// wastes nothing.
const chunkLen = 512

// table holds the connections of one run. Rows hold no pointers; a row keeps
// its number and its address for as long as the table lives.
type table struct {
	chunks [][]row
	n      uint32
}

// row is one connection: as first seen, and what asking it has brought.
type row struct {
	sock     conn.Sock
	settings settings
	ask      asking
	owners   uint32 // first of its owners in run.owners
	ownerN   uint16
	skip     bool // fails the filter; stays only because rows do not move
	policy   bool // settings are known
}

// settings are keepalive.Settings without padding.
type settings struct {
	idle, interval uint32 // seconds
	userTimeout    uint32 // milliseconds
	probes         uint8
	keepalive      bool
}

func (t *table) at(i uint32) *row { return &t.chunks[i/chunkLen][i%chunkLen] }

// add gives a fresh row.
func (t *table) add() (uint32, *row) {
	if t.n%chunkLen == 0 && int(t.n/chunkLen) == len(t.chunks) {
		t.chunks = append(t.chunks, make([]row, chunkLen))
	}
	i := t.n
	t.n++
	r := t.at(i)
	*r = row{}
	return i, r
}

// truncate forgets the rows from n on.
func (t *table) truncate(n uint32) { t.n = n }

// index finds rows by a 64-bit key. Open addressing with linear probing over
// row numbers plus one: four bytes a place, and the keys stay in the rows.
type index struct {
	places []uint32
	mask   uint32
}

func newIndex(n uint32) index {
	size := uint32(16)
	for size < n+n/2 {
		size *= 2
	}
	return index{places: make([]uint32, size), mask: size - 1}
}

// spread is the finalizer of MurmurHash3: cookies and inodes are sequential.
func spread(key uint64) uint32 {
	key ^= key >> 33
	key *= 0xff51afd7ed558ccd
	key ^= key >> 33
	return uint32(key)
}

// find calls match with the rows that may have the key until it returns true.
func (x index) find(key uint64, match func(i uint32) bool) {
	for p := spread(key) & x.mask; x.places[p] != 0; p = (p + 1) & x.mask {
		if match(x.places[p] - 1) {
			return
		}
	}
}

func (x index) insert(key uint64, i uint32) {
	p := spread(key) & x.mask
	for x.places[p] != 0 {
		p = (p + 1) & x.mask
	}
	x.places[p] = i + 1
}
