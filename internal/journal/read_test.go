package journal

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"deadpeer/internal/conn"
)

func id(cookie uint64) conn.ID { return conn.ID{NetNS: 4026531840, Cookie: cookie} }

func reuse(cookie uint64, value int32) Record {
	return Record{Kind: ReuseAddr, ID: id(cookie), PID: 42, FD: 7, ReuseAddr: value}
}

func keep(cookie uint64, idle int32) Record {
	return Record{Kind: KeepAlive, ID: id(cookie), PID: 42, FD: 7, KeepAlive: true, Idle: idle, Interval: 75, Probes: 9}
}

func rearm(cookie uint64) Record { return Record{Kind: Rearm, ID: id(cookie), PID: 42, FD: 7} }

func restored(cookie uint64) Record {
	return Record{Kind: Restored, ID: id(cookie), PID: 42, FD: 7}
}

func encode(h header, records ...Record) []byte {
	b := h.append(nil)
	for _, r := range records {
		b = r.append(b)
	}
	return b
}

func TestReadTellsWhatIsOutstanding(t *testing.T) {
	h := header{boot: [16]byte{1, 2, 3}, pid: 1234, start: 1 << 40}
	for _, tt := range []struct {
		name          string
		written, want []Record
	}{
		{"nothing", nil, nil},
		{"an original", []Record{reuse(1, 1)}, []Record{reuse(1, 1)}},
		{"undone", []Record{reuse(1, 1), restored(1)}, nil},
		{"the first original is the true one", []Record{keep(1, 7200), keep(1, 1)}, []Record{keep(1, 7200)}},
		{"once undone, the next is", []Record{keep(1, 7200), restored(1), keep(1, 60)}, []Record{keep(1, 60)}},
		{"both kinds", []Record{keep(1, 7200), reuse(1, 1)}, []Record{reuse(1, 1), keep(1, 7200)}},
		{"undone undoes both", []Record{keep(1, 7200), reuse(1, 1), restored(1)}, nil},
		{"others stay", []Record{keep(2, 7200), reuse(1, 1), restored(2)}, []Record{reuse(1, 1)}},
		{"undone without an original", []Record{restored(9), reuse(1, -1)}, []Record{reuse(1, -1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, l, torn, err := read(bytes.NewReader(encode(h, tt.written...)))
			if err != nil || torn != 0 || got != h {
				t.Fatalf("header %+v, torn %d, error %v", got, torn, err)
			}
			if records := l.records(); !slices.Equal(records, tt.want) {
				t.Errorf("got %+v\nwant %+v", records, tt.want)
			}
		})
	}
}

// Whatever offset a write is torn at, all records before it count and the
// rest is reported; the same goes for a byte that is damaged.
func TestReadTornAndDamaged(t *testing.T) {
	records := []Record{reuse(1, 1), keep(2, 7200), restored(1), reuse(3, 1)}
	whole := encode(header{pid: 1, start: 1}, records...)
	ends := []int{headerSize}
	for _, r := range records {
		ends = append(ends, ends[len(ends)-1]+r.size()+frameSize)
	}
	if ends[len(ends)-1] != len(whole) {
		t.Fatalf("records end at %v, the file at %d", ends, len(whole))
	}
	verify := func(t *testing.T, b []byte, good int) {
		t.Helper()
		l := ledger{}
		for _, r := range records[:good] {
			l.apply(r)
		}
		_, got, torn, err := read(bytes.NewReader(b))
		if err != nil || torn != int64(len(b)-ends[good]) || !slices.Equal(got.records(), l.records()) {
			t.Errorf("%d bytes, %d good records: got %+v, torn %d, error %v", len(b), good, got.records(), torn, err)
		}
	}
	for at := range len(whole) {
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x20
		if at < headerSize {
			for _, b := range [][]byte{whole[:at], flipped} {
				if _, _, _, err := read(bytes.NewReader(b)); !errors.Is(err, errHeader) && !errors.Is(err, errNotJournal) {
					t.Errorf("header torn or damaged at %d: got %v", at, err)
				}
			}
			continue
		}
		good := 0
		for good+1 < len(ends) && ends[good+1] <= at {
			good++
		}
		verify(t, whole[:at], good)
		verify(t, flipped, good)
		verify(t, append(bytes.Clone(whole[:at]), bytes.Repeat([]byte{0xee}, 100)...), good)
	}
}

func FuzzRead(f *testing.F) {
	h := header{boot: [16]byte{1}, pid: 1234, start: 99}
	f.Add(encode(h))
	f.Add(encode(h, reuse(1, 1), keep(2, 7200), restored(1)))
	f.Add(encode(h, keep(2, 7200))[:headerSize+20])
	f.Add(encode(h, rearm(3), keep(3, 7200), rearm(4), restored(4)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, l, torn, err := read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if torn < 0 || torn > int64(len(b)-headerSize) {
			t.Fatalf("%d of %d bytes torn", torn, len(b))
		}
		// The good part reads the same without the bad, and what is
		// outstanding survives being written again.
		for _, again := range [][]byte{b[:int64(len(b))-torn], encode(h, l.records()...)} {
			h2, l2, torn2, err := read(bytes.NewReader(again))
			if err != nil || torn2 != 0 || h2 != h || !slices.Equal(l2.records(), l.records()) {
				t.Fatalf("read again: %+v, %+v, torn %d, error %v", h2, l2.records(), torn2, err)
			}
		}
	})
}
