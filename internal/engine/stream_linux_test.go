package engine

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"deadpeer/internal/conn"
)

// Stream tells of the same connections as Scan without owners.
func TestStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := append(w.connect("tcp4", w.near, 6), w.connect("tcp6", w.near, 6)...)
	for _, words := range [][]string{nil, {"verdict", "=", "alive"}, {"verdict", "=", "quiet"}, {"dport", "=", ":1"}} {
		r := w.request()
		r.Filter = must(conn.ParseFilter(words, conn.Resolver{}))(t)
		r.NoOwners, r.Memory = true, true
		want := byPeer(must(w.engine.Scan(t.Context(), r))(t))
		got := map[netip.AddrPort]conn.Sock{}
		_, err := w.engine.Stream(t.Context(), r, func(c *Connection) error {
			if w := want[c.Sock.Peer()].Judgement; c.Memory == nil || len(c.Owners) > 0 || c.Judgement.Verdict != w.Verdict || c.Judgement.Why != w.Why {
				t.Errorf("%q: %s: memory %v, owners %v, %s, want %s", words, c.Sock.Peer(), c.Memory, c.Owners, c.Judgement.Verdict, w.Verdict)
			}
			got[c.Sock.Peer()] = *c.Sock
			return nil
		})
		ok(t, err)
		if !maps.EqualFunc(got, want, func(s conn.Sock, c Connection) bool { return s.ID() == c.Sock.ID() }) {
			t.Errorf("%q: %d connections, want %d", words, len(got), len(want))
		}
		if words == nil && len(got) < len(peers) {
			t.Errorf("%d connections, want at least %d", len(got), len(peers))
		}
	}
	stop := errors.New("stop")
	if _, err := w.engine.Stream(t.Context(), w.request(), func(*Connection) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of visit: %v", err)
	}
	r := w.request()
	r.Filter = must(conn.ParseFilter([]string{"pid", "=", "1"}, conn.Resolver{}))(t)
	if _, err := w.engine.Stream(t.Context(), r, func(*Connection) error { return nil }); !errors.Is(err, errNeedsOwners) {
		t.Errorf("filter on owners: %v", err)
	}
}

func TestIndex(t *testing.T) {
	t.Parallel()
	// Keys come twice, and 0 means none.
	key := func(i uint32) uint64 { return uint64(i / 2 % 500) }
	find := func(x *index, k uint64) (rows []uint32) {
		x.find(k, func(i uint32) bool {
			if key(i) == k {
				rows = append(rows, i)
			}
			return false
		})
		slices.Sort(rows)
		return rows
	}
	var x index
	if got := find(&x, 7); got != nil {
		t.Errorf("empty index: %v", got)
	}
	for i := range uint32(1000) {
		x.insert(key(i), i, key)
	}
	for k := range uint64(500) {
		if got, want := find(&x, k), []uint32{uint32(2 * k), uint32(2*k + 1)}; !slices.Equal(got, want) {
			t.Errorf("key %d: rows %v, want %v", k, got, want)
		}
	}
	x.rebuild(100, key)
	for k, want := range map[uint64][]uint32{0: nil, 49: {98, 99}, 50: nil} {
		if got := find(&x, k); !slices.Equal(got, want) {
			t.Errorf("key %d of the first 100 rows: %v, want %v", k, got, want)
		}
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	var s Snapshot
	for inode := range uint32(4) { // the first has none
		_, row := s.table.add()
		row.sock.Inode = inode
	}
	j := &join{table: &s.table}
	j.add([]claim{{1, conn.Owner{PID: 9, FD: 3}}, {3, conn.Owner{PID: 5, FD: 4}}, {77, conn.Owner{PID: 1, FD: 1}}})
	var byInode index
	for i := uint32(1); i < 4; i++ {
		byInode.insert(s.table.inode(i), i, s.table.inode)
	}
	j.begin(&byInode)
	j.add([]claim{{3, conn.Owner{PID: 5, FD: 2}}, {1, conn.Owner{PID: 8, FD: 7}}, {3, conn.Owner{PID: 2, FD: 9}}})
	s.owners = j.gather()
	for i, want := range [][]conn.Owner{nil, {{PID: 8, FD: 7}, {PID: 9, FD: 3}}, nil, {{PID: 2, FD: 9}, {PID: 5, FD: 2}, {PID: 5, FD: 4}}} {
		if got := s.ownersOf(s.table.at(uint32(i))); !slices.Equal(got, want) {
			t.Errorf("row %d: owners %v, want %v", i, got, want)
		}
	}
}
