package engine

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

// Stream tells of the same connections as Scan, and the same of them.
func TestStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := append(w.connect("tcp4", w.near, 6), w.connect("tcp6", w.near, 6)...)
	w.diversify()
	for i, p := range peers {
		if i%3 == 0 { // another descriptor
			f := must(w.servers[p].File())(t)
			t.Cleanup(func() { _ = f.Close() })
		}
	}
	self := "pid = " + strconv.Itoa(os.Getpid())
	// A program that another test is about to start has our descriptors for a moment.
	ours := func(list []conn.Owner) []conn.Owner {
		return slices.DeleteFunc(slices.Clone(list), func(o conn.Owner) bool { return o.PID != int32(os.Getpid()) })
	}
	for _, o := range []struct{ noBPF, noOwners, memory bool }{
		{}, {noBPF: true}, {memory: true}, {noOwners: true}, {noBPF: true, noOwners: true, memory: true},
	} {
		engine := New(Options{RuntimeDir: w.dir, NoBPF: o.noBPF})
		filters := []string{""}
		if !o.noBPF && !o.memory {
			filters = append(filters, "verdict = alive", "verdict = quiet", "dport = :1", self)
		}
		for _, words := range filters {
			r := w.filtered(words)
			r.Rules.Fresh = time.Hour
			r.NoOwners, r.Memory = o.noOwners, o.memory
			want := byPeer(must(engine.Scan(t.Context(), r))(t))
			got := map[netip.AddrPort]conn.Sock{}
			_, err := engine.Stream(t.Context(), r, func(c *Connection) error {
				w := want[c.Sock.Peer()]
				if j := w.Judgement; (c.Memory != nil) != o.memory || c.Judgement.Verdict != j.Verdict || c.Judgement.Why != j.Why {
					t.Errorf("%+v %q: %s: memory %v, %s, want %s", o, words, c.Sock.Peer(), c.Memory, c.Judgement.Verdict, j.Verdict)
				}
				if !slices.Equal(ours(c.Owners), ours(w.Owners)) || c.Known != w.Known || c.Settings != w.Settings || c.Origin != w.Origin {
					t.Errorf("%+v %q: %s: %v %v %+v %s, want %v %v %+v %s", o, words, c.Sock.Peer(),
						c.Owners, c.Known, c.Settings, c.Origin, w.Owners, w.Known, w.Settings, w.Origin)
				}
				for _, o := range c.Owners {
					if p := c.Process(o.PID); p == nil || p.Comm == "" {
						t.Errorf("%q: %s: no process %d", words, c.Sock.Peer(), o.PID)
					}
				}
				got[c.Sock.Peer()] = *c.Sock
				return nil
			})
			ok(t, err)
			if !maps.EqualFunc(got, want, func(s conn.Sock, c Connection) bool { return s.ID() == c.Sock.ID() }) {
				t.Errorf("%+v %q: %d connections, want %d", o, words, len(got), len(want))
			}
			if (words == "" || words == self) && len(got) < len(peers) {
				t.Errorf("%+v %q: %d connections, want at least %d", o, words, len(got), len(peers))
			}
		}
	}
	stop := errors.New("stop")
	if _, err := w.engine.Stream(t.Context(), w.request(), func(*Connection) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of visit: %v", err)
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
	for k, want := range map[uint64][]uint32{0: {0, 1}, 49: {98, 99}, 50: nil} {
		if got := find(&x, k); !slices.Equal(got, want) {
			t.Errorf("key %d of the first 100 rows: %v, want %v", k, got, want)
		}
	}
}

// When a namespace is listed again, what was handed over cannot be taken back;
// the rest is.
func TestStreamRestart(t *testing.T) {
	t.Parallel()
	s := stream{run: &run{snap: &Snapshot{}}, hints: newHinter(&Snapshot{}), free: make(chan *shipment, 2), full: make(chan *shipment, 2)}
	s.req.Filter = filter(t, "")
	s.free <- new(shipment)
	s.free <- new(shipment)
	for cookie := range uint64(10) {
		ok(t, s.next(&row{sock: conn.Sock{Cookie: 1 + cookie}}, nil))
	}
	s.restart()
	for cookie := range uint64(shipmentRows) {
		ok(t, s.next(&row{sock: conn.Sock{Cookie: 1 + cookie}}, nil))
	}
	if b := <-s.full; s.torn || s.n != shipmentRows || b.shown != shipmentRows || b.show[0].Sock.Cookie != 1 {
		t.Errorf("torn %v; %d, %d shown from %d on", s.torn, s.n, b.shown, b.show[0].Sock.Cookie)
	}
	if s.restart(); !s.torn || !errors.Is(s.next(&row{}, nil), sockdiag.ErrInterrupted) {
		t.Errorf("torn %v, though some were handed over", s.torn)
	}
}
