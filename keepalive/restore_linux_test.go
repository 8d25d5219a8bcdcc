package keepalive_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

func TestRestore(t *testing.T) {
	c, _ := pair(t, "tcp4")
	host := get(t, c)
	list := []keepalive.Settings{
		host,
		{KeepAlive: true, Policy: host.Policy},
		{KeepAlive: true, Policy: keepalive.Policy{Idle: 60 * second, Interval: 10 * second, Probes: 6}},
		{KeepAlive: true, Policy: keepalive.Policy{Idle: 30 * second, Interval: 5 * second, Probes: 3, UserTimeout: 45001 * time.Millisecond}},
		// What Set would refuse: the owner has it, so it is put back.
		{KeepAlive: true, Policy: keepalive.Policy{Idle: 100 * second, Interval: 5 * second, Probes: 3, UserTimeout: second}},
		{Policy: keepalive.Policy{Idle: 90 * second, Interval: 20 * second, Probes: 7, UserTimeout: 500 * time.Millisecond}},
	}
	for _, from := range list {
		for _, to := range list {
			for _, s := range []keepalive.Settings{from, to} {
				ok(t, keepalive.Restore(c, s))
				if got := get(t, c); got != s {
					t.Fatalf("from %+v\n to %+v\ngot %+v", from, s, got)
				}
			}
		}
	}
	before := get(t, c)
	ok(t, keepalive.Restore(c, keepalive.Settings{Policy: keepalive.Policy{Idle: -1, Interval: -1, Probes: -1, UserTimeout: -1}}))
	if got := get(t, c); got != before {
		t.Errorf("what is not told is left alone: got %+v, want %+v", got, before)
	}
}

// A host may have defaults that setsockopt refuses. A socket that still has
// them gets no call, one that has other values keeps them, with an error.
func TestRestoreBeyondTheSettable(t *testing.T) {
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	h, err := world.Host("h")
	ok(t, err)
	ok(t, h.SetSysctl("net.ipv4.tcp_keepalive_time", "100000"))
	l, err := h.Listen(t.Context(), "tcp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0).String())
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })
	c, err := h.Dial(t.Context(), "tcp4", l.Addr().String())
	ok(t, err)
	t.Cleanup(func() { _ = c.Close() })

	host := get(t, c)
	if host.Idle != 100000*second {
		t.Fatalf("the host's idle time is %v", host.Idle)
	}
	ok(t, keepalive.Restore(c, host))
	set(t, c, keepalive.Policy{Interval: 10 * second, Probes: 3, UserTimeout: -1})
	ok(t, keepalive.Restore(c, host))
	if got := get(t, c); got != host {
		t.Errorf("got %+v, want %+v", got, host)
	}
	ok(t, h.SetSysctl("net.ipv4.tcp_keepalive_time", "90000"))
	if got := get(t, c).Idle; got != 90000*second {
		t.Errorf("idle time is %v and not the host's any more", got)
	}
	set(t, c, keepalive.Policy{Idle: 60 * second, Interval: 20 * second, Probes: 5})
	var part *keepalive.PartError
	if err := keepalive.Restore(c, host); !errors.As(err, &part) || part.Part != keepalive.PartIdle || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want the idle time refused", err)
	}
	host.Idle = 60 * second
	if got := get(t, c); got != host {
		t.Errorf("the rest: got %+v, want %+v", got, host)
	}
}

// The owner's settings come back in the middle of probing, when by them the
// connection were long dead, and the living peer still has time to answer.
func TestRestoringInMidProbingLeavesTimeToAnswer(t *testing.T) {
	t.Parallel()
	c, s := pair(t, "tcp4")
	set(t, c, keepalive.Policy{Idle: 2 * second, Interval: second, Probes: 1})
	was := get(t, c)
	set(t, c, keepalive.Policy{Idle: second, Interval: second, Probes: 100})
	hear := deafen(t, s)
	waitForProbes(t, c, 3)
	ok(t, keepalive.Restore(c, was))
	time.Sleep(100 * time.Millisecond) // many ticks
	hear()
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	ok(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("the living peer's connection is gone: %v", err)
	}
	if got := get(t, c); got != was {
		t.Errorf("got %+v, want %+v", got, was)
	}
}

func TestHeard(t *testing.T) {
	t.Parallel()
	c, s := pair(t, "tcp4")
	heard := func() time.Duration {
		t.Helper()
		d, err := keepalive.Heard(c)
		ok(t, err)
		return d
	}
	time.Sleep(300 * time.Millisecond)
	quiet := heard()
	if quiet < 200*time.Millisecond || quiet > 20*time.Second {
		t.Errorf("heard %v ago after 300 ms of silence", quiet)
	}
	// Data of the peer counts, and so does its bare ACK of ours.
	for name, exchange := range map[string]func(){
		"data": func() {
			_, err := s.Write([]byte("x"))
			ok(t, err)
			_, err = c.Read(make([]byte, 1))
			ok(t, err)
		},
		"ACK": func() {
			_, err := c.Write([]byte("x"))
			ok(t, err)
			_, err = s.Read(make([]byte, 1))
			ok(t, err)
		},
	} {
		time.Sleep(300 * time.Millisecond)
		before := time.Now()
		exchange()
		for deadline := time.Now().Add(10 * time.Second); heard() > time.Since(before)+20*time.Millisecond; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: heard %v ago, want %v", name, heard(), time.Since(before))
			}
			time.Sleep(time.Millisecond)
		}
	}

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	if _, err := keepalive.Heard(l.(*net.TCPListener)); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("listener: got %v, want ENOTCONN", err)
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	ok(t, err)
	defer u.Close()
	if _, err := keepalive.Heard(u); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("UDP: got %v, want ErrUnsupported", err)
	}
}

func TestBestEffort(t *testing.T) {
	p := keepalive.Policy{Idle: 50 * second, Interval: 5 * second, Probes: 5, UserTimeout: 100 * second}
	c, _ := pair(t, "tcp4")
	undone, err := keepalive.SetBestEffort(c, p)
	if err != nil || len(undone) > 0 {
		t.Errorf("TCP: %v, %v", undone, err)
	}
	if got, want := get(t, c), (keepalive.Settings{KeepAlive: true, Policy: p}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var bad *keepalive.PolicyError
	if _, err := keepalive.SetBestEffort(c, keepalive.Policy{Probes: -1}); !errors.As(err, &bad) {
		t.Errorf("bad policy: got %v, want a PolicyError", err)
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	ok(t, err)
	defer u.Close()
	if _, err := keepalive.SetBestEffort(u, p); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("UDP: got %v, want ErrUnsupported", err)
	}

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("no MPTCP here: %v", err)
	}
	defer unix.Close(fd)
	undone, err = keepalive.SetBestEffortFD(uintptr(fd), p)
	ok(t, err)
	left := map[keepalive.Part]bool{}
	for _, part := range undone {
		left[part.Part] = true
		if !errors.Is(part, errors.ErrUnsupported) {
			t.Errorf("MPTCP: %v does not match ErrUnsupported", part)
		}
	}
	t.Logf("MPTCP: undone %v", undone)
	s, err := keepalive.GetFD(uintptr(fd))
	if err != nil {
		t.Skipf("this kernel's MPTCP sockets do not tell: %v", err)
	}
	if !s.KeepAlive || !left[keepalive.PartIdle] != (s.Idle == p.Idle) || !left[keepalive.PartInterval] != (s.Interval == p.Interval) ||
		!left[keepalive.PartProbes] != (s.Probes == p.Probes) || !left[keepalive.PartUserTimeout] != (s.UserTimeout == p.UserTimeout) {
		t.Errorf("MPTCP: undone %v, but got %+v", undone, s)
	}
}
