package release

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The addresses and ports of a connection that was to be ended belong to a new
// one by the time, round after round: the new one is never ended in its place.
func TestTupleReused(t *testing.T) {
	t.Parallel()
	n := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, n.Close()) })
	host := must(n.Host("host"))(t)
	diag := must(sockdiag.Open(host.NS()))(t)
	defer func() { ok(t, diag.Close()) }()
	ok(t, host.Do(func() error {
		l := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
		defer func() { _ = unix.Close(l) }()
		server := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		ok(t, errors.Join(unix.Bind(l, server), unix.Listen(l, 16)))
		server = must(unix.Getsockname(l))(t).(*unix.SockaddrInet4)
		client := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}, Port: 20000}
		connect := func() (c, s int) {
			c = must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
			ok(t, unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			ok(t, errors.Join(unix.Bind(c, client), unix.Connect(c, server)))
			s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			ok(t, err)
			return c, s
		}
		identity := func(fd int) conn.Sock {
			sock := conn.Sock{
				NetNS: diag.NetNS(), Family: conn.IPv4, State: conn.Established,
				LocalIP: netip.AddrFrom4(server.Addr).As16(), LocalPort: uint16(server.Port),
				PeerIP: netip.AddrFrom4(client.Addr).As16(), PeerPort: uint16(client.Port),
			}
			sock.Cookie = must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))(t)
			return sock
		}
		c, s := connect()
		old := identity(s)
		for round := range 100_000 {
			_, _ = unix.Close(c), unix.Close(s) // the client's sends RST
			c, s = connect()
			// Whatever may be ended, and even what is read again as it was.
			items := []Item{{Sock: old, Any: true}, {Sock: old, SegsIn: 2}}
			Act(t.Context(), diag, nil, items, func(i int, err error) {
				if !errors.Is(err, sockdiag.ErrGone) {
					t.Errorf("round %d, item %d: %v", round, i, err)
				}
			})
			if err := diag.Destroy([]*conn.Sock{&old}, func(_ int, err error) {
				if !errors.Is(err, sockdiag.ErrGone) {
					t.Errorf("round %d: %v", round, err)
				}
			}); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
			if state := must(unix.GetsockoptTCPInfo(s, unix.IPPROTO_TCP, unix.TCP_INFO))(t).State; state != uint8(conn.Established) {
				t.Fatalf("round %d: the new connection is in state %d", round, state)
			}
			old = identity(s)
		}
		// That it is named rightly shows in that it can be ended.
		Act(t.Context(), diag, nil, []Item{{Sock: old, Any: true}}, func(_ int, err error) { ok(t, err) })
		if _, err := unix.Read(s, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("read: %v", err)
		}
		_, _ = unix.Close(c), unix.Close(s)
		return nil
	}))
}

// A socket that its program has connected anew, by the same addresses, is
// another connection though its cookie and its count of segments are the same.
func TestConnectedAnew(t *testing.T) {
	t.Parallel()
	n := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, n.Close()) })
	host := must(n.Host("host"))(t)
	diag := must(sockdiag.Open(host.NS()))(t)
	defer func() { ok(t, diag.Close()) }()
	ok(t, host.Do(func() error {
		l := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
		defer func() { _ = unix.Close(l) }()
		ok(t, errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 16)))
		server := must(unix.Getsockname(l))(t).(*unix.SockaddrInet4)
		c := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
		defer func() { _ = unix.Close(c) }()
		client := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}, Port: 20000}
		ok(t, errors.Join(unix.Bind(c, client), unix.Connect(c, server)))
		sock := conn.Sock{
			NetNS: diag.NetNS(), Family: conn.IPv4, State: conn.Established,
			LocalIP: netip.AddrFrom4(client.Addr).As16(), LocalPort: uint16(client.Port),
			PeerIP: netip.AddrFrom4(server.Addr).As16(), PeerPort: uint16(server.Port),
			Cookie: must(unix.GetsockoptUint64(c, unix.SOL_SOCKET, unix.SO_COOKIE))(t),
		}
		look := func() (s conn.Sock) {
			s = sock
			ok(t, diag.Lookup([]*conn.Sock{&s}, func(_ int, err error) { ok(t, err) }))
			return s
		}
		before, seen := look(), time.Now()
		time.Sleep(200 * time.Millisecond)
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c), uintptr(unsafe.Pointer(&unix.RawSockaddr{Family: unix.AF_UNSPEC})), unix.SizeofSockaddrInet4)
		if errno != 0 {
			t.Fatal(errno)
		}
		ok(t, unix.Connect(c, server))
		if now := look(); now.SegsIn != before.SegsIn {
			t.Fatalf("%d segments, were %d", now.SegsIn, before.SegsIn)
		}
		Act(t.Context(), diag, nil, []Item{{Sock: before, SegsIn: before.SegsIn, Since: seen}}, func(_ int, err error) {
			if !errors.Is(err, ErrHeard) {
				t.Errorf("got %v", err)
			}
		})
		if now := look(); now.State != conn.Established {
			t.Errorf("the new connection is %s", now.State)
		}
		return nil
	}))
}

// The thread that acted goes on as an ordinary one.
func TestActLeavesThreadCalm(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := must(unix.SchedGetAttr(0, 0))(t)
	during := uint32(unix.SCHED_NORMAL)
	k := &kernel{segsIn: map[uint64]uint32{1: 10}}
	k.destroys = func(uint64) error {
		during = must(unix.SchedGetAttr(0, 0))(t).Policy
		return nil
	}
	run(t.Context(), t, k, []Item{item(1, 10)})
	after := must(unix.SchedGetAttr(0, 0))(t)
	if after.Policy != before.Policy || after.Priority != before.Priority || after.Nice != before.Nice {
		t.Errorf("%+v, was %+v", after, before)
	}
	if os.Geteuid() == 0 && os.Getenv("DEADPEER_TESTNET_REEXEC") == "" && during != unix.SCHED_FIFO {
		t.Logf("not urgent: policy %d", during)
	}
}
