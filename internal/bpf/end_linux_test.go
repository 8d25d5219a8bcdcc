package bpf

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func silentOf(t *testing.T, c *net.TCPConn) (s Silent) {
	t.Helper()
	s.Cookie = cookieOf(t, c)
	control(t, c, func(fd int) { s.SegsIn = must(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO))(t).Segs_in })
	return s
}

// end runs one End of a program of its own, in several walks.
func (w *world) end(list []Silent) (endings map[uint64]Ending) {
	w.t.Helper()
	e, err := OpenEnder(len(list)/3 + 1)
	if errors.Is(err, errors.ErrUnsupported) {
		skip(w.t, err)
	}
	ok(w.t, err)
	endings = map[uint64]Ending{}
	ok(w.t, e.End(w.t.Context(), w.ns(), list, func(i int, o Ending, err error) {
		if _, twice := endings[list[i].Cookie]; twice || err != nil {
			w.t.Errorf("%+v: %v %v", list[i], o, err)
		}
		endings[list[i].Cookie] = o
	}))
	ok(w.t, e.Close())
	return endings
}

// lives sends a byte both ways.
func lives(p pair) error {
	for _, ends := range [][2]*net.TCPConn{{p.client, p.server}, {p.server, p.client}} {
		if _, err := ends[0].Write([]byte{1}); err != nil {
			return err
		}
		if err := ends[1].SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := io.ReadFull(ends[1], make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}

// Those ended are the ones that have heard nothing since they were seen, and
// are there, of this namespace, and no others.
func TestEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pairs := append(w.connect("tcp4", 90), w.connect("tcp6", 90)...)
	want := map[uint64]Ending{1 << 60: NotFound}
	list := []Silent{{Cookie: 1 << 60}}
	for i, p := range pairs {
		s := silentOf(t, p.server)
		switch i % 3 {
		case 0:
			want[s.Cookie] = Ended
			if i%2 == 0 { // it has not been silent for as long as was thought
				want[s.Cookie], s.For = Heard, time.Hour
			}
			list = append(list, s)
		case 1:
			want[s.Cookie] = Heard
			list = append(list, s)
			ok(t, lives(p))
		case 2: // not to be ended; its other end is, which is elsewhere
			other := silentOf(t, p.client)
			want[other.Cookie] = NotFound
			list = append(list, other)
		}
	}
	got := w.end(list)
	for cookie, o := range want {
		if g, told := got[cookie]; !told || g != o {
			t.Errorf("cookie %d: %v, want %v", cookie, g, o)
		}
	}
	for i, p := range pairs {
		if want[cookieOf(t, p.server)] != Ended {
			if err := lives(p); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
			continue
		}
		if _, err := p.server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("connection %d: %v, want ECONNABORTED", i, err)
		}
		if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("connection %d: its peer has %v, want ECONNRESET", i, err)
		}
	}
}

// A connection is ended once, though its owner closes and others end it at the
// same time.
func TestEndWhileClosing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pairs := w.connect("tcp4", 200)
	var list []Silent
	for _, p := range pairs {
		list = append(list, silentOf(t, p.server))
	}
	var closing sync.WaitGroup
	closing.Go(func() {
		for _, p := range pairs {
			if err := p.server.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	first, second := w.end(list), w.end(list)
	closing.Wait()
	for _, s := range list {
		if first[s.Cookie] == Ended && second[s.Cookie] == Ended {
			t.Errorf("cookie %d was ended twice", s.Cookie)
		}
	}
}
