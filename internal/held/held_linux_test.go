package held

import (
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// sockets gives descriptors of n connected sockets, and their cookies.
func sockets(t *testing.T, n int) (fds []int, cookies []uint64) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for range n {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = c.Close(), f.Close() })
		cookie, err := unix.GetsockoptUint64(int(f.Fd()), unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		fds, cookies = append(fds, int(f.Fd())), append(cookies, cookie)
	}
	return fds, cookies
}

// A descriptor changes its socket all the time: the wrong one is never taken.
func TestTakeWhileReused(t *testing.T) {
	fds, cookies := sockets(t, 2)
	churned, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; !stop.Load(); n++ {
			_ = unix.Dup3(fds[n%2], churned, unix.O_CLOEXEC)
		}
	}()
	taker := New()
	defer taker.Close()
	owner := []conn.Owner{{PID: int32(os.Getpid()), FD: int32(churned)}}
	taken, reused := 0, 0
	const rounds = 100_000
	for end := time.Now().Add(20 * time.Second); taken+reused < rounds && time.Now().Before(end); {
		s, refusal := taker.Take(cookies[0], owner)
		switch refusal {
		case None:
			taken++
			got, err := unix.GetsockoptUint64(s.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil || got != cookies[0] {
				t.Fatalf("took socket %d (%v), want %d", got, err, cookies[0])
			}
			taker.Give(s)
		case Reused:
			reused++
		default:
			t.Fatal(refusal)
		}
	}
	stop.Store(true)
	<-done
	_ = unix.Close(churned)
	if taken == 0 || reused == 0 {
		t.Errorf("taken %d times, reused %d times", taken, reused)
	}
}

func TestTakeRefuses(t *testing.T) {
	fds, cookies := sockets(t, 1)
	taker := New()
	defer taker.Close()
	self := int32(os.Getpid())
	for _, tt := range []struct {
		owners []conn.Owner
		want   Refusal
	}{
		{nil, NoOwner},
		{[]conn.Owner{{PID: self, FD: 1 << 20}}, OwnerGone},
		{[]conn.Owner{{PID: 1 << 22, FD: 0}}, OwnerGone},
		{[]conn.Owner{{PID: self, FD: 0}}, Reused},
		{[]conn.Owner{{PID: 1 << 22, FD: 0}, {PID: self, FD: int32(fds[0])}}, None},
	} {
		s, got := taker.Take(cookies[0], tt.owners)
		if got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.owners, got, tt.want)
		}
		if got == None {
			if s.State() != conn.Established {
				t.Errorf("it is %s", s.State())
			}
			taker.Give(s)
		}
	}
}
