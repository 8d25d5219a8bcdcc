package bpf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

// FuzzRecords: what does not end with a whole record is an error, and nothing
// panics, however it is cut.
func FuzzRecords(f *testing.F) {
	f.Add(make([]byte, 3*recordLen))
	f.Add(bytes.Repeat([]byte{0xff}, recordLen))
	f.Add(make([]byte, recordLen+1))
	f.Add(make([]byte, 2*descriptorLen))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var n int
		check := func(what string, length int, err error) {
			if n != len(b)/length || (err != nil) != (len(b)%length != 0) {
				t.Errorf("%d %s of %d bytes: %v", n, what, len(b), err)
			}
			n = 0
		}
		d := recordReader{hz: 250}
		check("records", recordLen, readAhead(context.Background(), bytes.NewReader(b), nil, func(b []byte) ([]byte, error) {
			return d.read(b, func(r *Record) error {
				_, _ = r.Sock.Local().String(), r.Sock.Peer().String()
				n++
				return nil
			})
		}))
		for _, in := range []io.Reader{bytes.NewReader(b), iotest.HalfReader(bytes.NewReader(b))} {
			check("descriptors", descriptorLen, readIter(context.Background(), in, func(b []byte) ([]byte, error) {
				return readDescriptors(b, func(Descriptor) { n++ }), nil
			}))
		}
	})
}

func FuzzParseMount(f *testing.F) {
	f.Add([]byte("36 35 98:0 / /mnt\\0402 rw,noatime master:1 - cgroup2 cgroup2 rw\n"))
	f.Add([]byte("30 23 0:26 /a /sys/fs/bpf rw,nosuid shared:7 - bpf bpf rw,mode=700"))
	f.Add([]byte("1 2 3:4 / / -"))
	f.Add([]byte(" -  "))
	f.Add([]byte("1 2 3:4 / /\\9 rw - x y"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if m, ok := parseMount(line); ok && (!filepath.IsAbs(m.point) || m.fstype == "") {
			t.Errorf("%+v", m)
		}
	})
}

func TestFindMount(t *testing.T) {
	t.Parallel()
	const list = `22 1 0:21 / /sys rw - sysfs sysfs rw
30 22 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
31 22 0:26 /sub /sys/fs/cgroup rw - cgroup2 cgroup2 rw
32 22 0:26 / /mnt/a\040b rw - cgroup2 cgroup2 rw
`
	for _, x := range []struct{ list, want string }{
		{list, "/sys/fs/cgroup/unified"},
		{list + "33 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"32 22 0:26 / /mnt/a\\040b rw - cgroup2 cgroup2 rw\n", "/mnt/a b"},
		{"", ""},
	} {
		if got := findMount([]byte(x.list), "cgroup2", "/sys/fs/cgroup"); got != x.want {
			t.Errorf("%q, want %q", got, x.want)
		}
	}
}

// FuzzDecodeLabel: what is decoded is encoded to the same again.
func FuzzDecodeLabel(f *testing.F) {
	good, err := storedLabel{1, Label{ID: "a", Rules: []Rule{{
		Local: Ports{1, 2}, From: netip.MustParsePrefix("10.0.0.0/8"), Policy: policy(time.Minute, time.Second, 3, -1),
	}}}}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"label":{"Rules":[{"From":"x"}]}}`))
	f.Add([]byte(`{"version":1e99}`))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLabel(b)
		if err != nil {
			return
		}
		again, err := l.encode()
		if err != nil {
			return // too long, or no time that JSON has
		}
		if l2, err := decodeLabel(again); err != nil || !reflect.DeepEqual(l, l2) {
			t.Errorf("%+v became %+v: %v", l, l2, err)
		}
	})
}

// What is read while there is a hold is taken after it, all of it and in order.
func TestReadAheadHolds(t *testing.T) {
	t.Parallel()
	const size = int64(20 * aheadLen)
	all := make([]byte, size)
	for i := range all {
		all[i] = byte(i / 7)
	}
	in := &counted{Reader: bytes.NewReader(all)}
	hold := make(chan struct{})
	var got []byte
	done := make(chan error, 1)
	go func() {
		done <- readAhead(t.Context(), in, hold, func(b []byte) ([]byte, error) {
			got = append(got, b...)
			return nil, nil
		})
	}()
	for in.n.Load() < size {
		select {
		case err := <-done:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if len(got) > 0 {
		t.Error("something was taken too early")
	}
	close(hold)
	if err := <-done; err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(all), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := readAhead(ctx, bytes.NewReader(all), make(chan struct{}), func([]byte) ([]byte, error) {
		t.Error("taken before what it was held for was there")
		return nil, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while there is a hold: %v", err)
	}
}

// counted counts what was read.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// A read error of an iterator is told.
func TestReadIter(t *testing.T) {
	t.Parallel()
	bad := errors.New("bad")
	for _, in := range []io.Reader{iotest.ErrReader(bad), io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(bad))} {
		if err := readIter(t.Context(), in, func(b []byte) ([]byte, error) { return b, nil }); !errors.Is(err, bad) {
			t.Errorf("%v", err)
		}
		if err := readAhead(t.Context(), in, nil, func([]byte) ([]byte, error) { return nil, nil }); !errors.Is(err, bad) {
			t.Errorf("ahead: %v", err)
		}
	}
	endless := func(b []byte) ([]byte, error) { return b, nil }
	if err := readIter(t.Context(), bytes.NewReader(make([]byte, 2*reads*readLen)), endless); err == nil {
		t.Error("a record without an end was taken")
	}
}
