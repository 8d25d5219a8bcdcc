package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// records lists what this process holds, and its children of pids.
func records(t *testing.T, s *Sockets, pids ...int) map[conn.Owner]Record {
	t.Helper()
	m := map[conn.Owner]Record{}
	ok(t, s.Each(t.Context(), func(r *Record) error {
		if int(r.Owner.PID) == os.Getpid() || slices.Contains(pids, int(r.Owner.PID)) {
			if _, twice := m[r.Owner]; twice {
				t.Errorf("%+v: twice", r.Owner)
			}
			m[r.Owner] = *r
		}
		return nil
	}))
	return m
}

// Every descriptor is told with what the kernel tells by other ways, through
// many fillings of the kernel's buffer.
func TestSockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
	t.Cleanup(func() { ok(t, s.Close()) })
	if pinned, why := s.Pinned(); pinned || why == nil {
		t.Errorf("pinned %v, %v", pinned, why)
	}
	var ends []*net.TCPConn
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, p := range w.connect(network, 300) {
			ends = append(ends, p.client, p.server)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i, c := range ends {
		if i%3 == 0 {
			setOpt(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		}
		if i%2 == 0 {
			setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1+random.IntN(32767))
		}
		if i%5 == 0 {
			setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1+random.IntN(32767))
			setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 1+random.IntN(127))
		}
		if i%7 == 0 {
			setOpt(t, c, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, random.Int()&0xfffffff)
		}
	}
	got := records(t, s)
	for i, c := range ends {
		control(t, c, func(fd int) {
			r, found := got[conn.Owner{PID: int32(os.Getpid()), FD: int32(fd)}]
			if !found {
				t.Errorf("descriptor %d is missing", fd)
				return
			}
			want := must(keepalive.GetFD(uintptr(fd)))(t)
			heard := must(keepalive.HeardFD(uintptr(fd)))(t)
			var st unix.Stat_t
			ok(t, unix.Fstat(fd, &st))
			ns := w.server.NS().Inode()
			if i%2 == 0 {
				ns = w.peer.NS().Inode()
			}
			if r.ID != (conn.ID{NetNS: ns, Cookie: must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))(t)}) ||
				uint64(r.Inode) != st.Ino || r.UID != uint32(os.Getuid()) || r.State != conn.Established || r.MPTCP {
				t.Errorf("descriptor %d: %+v", fd, r)
			}
			if r.Settings.Settings != want {
				t.Errorf("descriptor %d: settings %+v, want %+v", fd, r.Settings, want)
			}
			if own := r.Settings.Own; (own.Idle != 0) != (i%2 == 0) || (own.Interval != 0) != (i%5 == 0) || (own.Probes != 0) != (i%5 == 0) {
				t.Errorf("descriptor %d: own %+v", fd, own)
			}
			if local, peer := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort(); r.Local() != local || r.Peer() != peer {
				t.Errorf("descriptor %d: %s %s, want %s %s", fd, r.Local(), r.Peer(), local, peer)
			}
			if r.Heard < 0 || r.Heard > heard+20*time.Millisecond {
				t.Errorf("descriptor %d: heard %s ago, want at most %s", fd, r.Heard, heard)
			}
			comm := must(os.ReadFile("/proc/self/comm"))(t)
			if r.Comm != string(comm[:len(comm)-1]) {
				t.Errorf("descriptor %d: comm %q, want %q", fd, r.Comm, comm)
			}
		})
	}
	stop := errors.New("stop")
	if err := s.Each(t.Context(), func(*Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of visit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Each(ctx, func(*Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("error of ctx: %v", err)
	}
}

// A socket is told once for each descriptor, of this process and of another
// one. What a thread with descriptors of its own has is not told.
func TestSocketsHolders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
	t.Cleanup(func() { ok(t, s.Close()) })
	c := w.connect("tcp4", 1)[0].client
	cookie := cookieOf(t, c)
	file := must(c.File())(t) // a duplicate
	t.Cleanup(func() { _ = file.Close() })
	child := exec.CommandContext(t.Context(), "sleep", "60")
	child.ExtraFiles = []*os.File{file}
	ok(t, child.Start())
	t.Cleanup(func() { _, _ = child.Process.Kill(), child.Wait() })

	unshared, done := make(chan int), make(chan struct{})
	own500 := func() {
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			t.Error(err)
			unshared <- -1
			return
		}
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 500)
		if err != nil {
			t.Error(err)
		}
		unshared <- fd
		<-done
		_ = unix.Close(fd)
	}
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if unix.Gettid() != os.Getpid() {
			own500()
			return
		}
		// The first thread's descriptors are what /proc shows of the process.
		var other sync.WaitGroup
		other.Go(func() {
			runtime.LockOSThread()
			own500()
		})
		other.Wait()
		runtime.UnlockOSThread()
	}()
	high := <-unshared
	defer close(done)

	owners := map[conn.Owner]int{}
	ok(t, s.Each(t.Context(), func(r *Record) error {
		if r.ID.Cookie == cookie {
			owners[r.Owner]++
		}
		return nil
	}))
	own := func(fd int) conn.Owner { return conn.Owner{PID: int32(os.Getpid()), FD: int32(fd)} }
	control(t, c, func(fd int) {
		want := map[conn.Owner]int{own(fd): 1, own(int(file.Fd())): 1, {PID: int32(child.Process.Pid), FD: 3}: 1}
		if !maps.Equal(owners, want) {
			t.Errorf("owners %v, want %v; the thread has %d", owners, want, high)
		}
	})
}

func TestSocketsStates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
	t.Cleanup(func() { ok(t, s.Close()) })
	p := w.connect("tcp4", 1)[0]
	l := must(w.server.Listen(t.Context(), "tcp6", "[::]:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	udp := must(net.ListenPacket("udp4", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = udp.Close() })
	fresh := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
	t.Cleanup(func() { _ = unix.Close(fresh) })
	ok(t, p.client.CloseWrite())
	var states [2]conn.State
	closing := [2]conn.State{conn.FinWait2, conn.CloseWait}
	for range 2000 {
		got := records(t, s)
		of := func(c interface{ Fd() uintptr }) Record {
			return got[conn.Owner{PID: int32(os.Getpid()), FD: int32(c.Fd())}]
		}
		states = [2]conn.State{of(fdOf(t, p.client)).State, of(fdOf(t, p.server)).State}
		if states != closing {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if r := of(fdOf(t, l)); r.State != conn.Listen || r.Family != conn.IPv6 {
			t.Errorf("listener: %+v", r)
		}
		if r := of(number(fresh)); r.State != conn.Close || r.ID.Cookie == 0 {
			t.Errorf("fresh socket: %+v", r)
		}
		if r, found := got[conn.Owner{PID: int32(os.Getpid()), FD: int32(fdOf(t, udp.(*net.UDPConn)))}]; found {
			t.Errorf("UDP socket: %+v", r)
		}
		break
	}
	if states != closing {
		t.Errorf("states %s, want %s", states, closing)
	}
}

type number int

func (n number) Fd() uintptr { return uintptr(n) }

func fdOf(t *testing.T, c syscall.Conn) (n number) {
	t.Helper()
	raw := must(c.SyscallConn())(t)
	ok(t, raw.Control(func(fd uintptr) { n = number(fd) }))
	return n
}

// Processes are told by the number they have where the reader is.
func TestSocketsPIDNamespace(t *testing.T) {
	if os.Getenv("DEADPEER_BPF_TEST") == "pids" {
		s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
		ok(t, s.Each(t.Context(), func(r *Record) error {
			fmt.Println("record", r.Owner.PID, r.Owner.FD)
			return nil
		}))
		os.Exit(0)
	}
	t.Parallel()
	w := newWorld(t)
	file := must(w.connect("tcp4", 1)[0].server.File())(t)
	defer func() { _ = file.Close() }()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestSocketsPIDNamespace$")
	cmd.Env = append(os.Environ(), "DEADPEER_BPF_TEST=pids")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "record 1 3\n" {
		t.Errorf("%v\n%s", err, out)
	}
}

// A socket of MPTCP is told with the inode that its subflows bear.
func TestSocketsMPTCP(t *testing.T) {
	t.Parallel()
	needBPF(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skip("no MPTCP in this kernel") // CI's kernel need not have it
	}
	defer func() { _ = unix.Close(fd) }()
	s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
	defer func() { ok(t, s.Close()) }()
	var st unix.Stat_t
	ok(t, unix.Fstat(fd, &st))
	r := records(t, s)[conn.Owner{PID: int32(os.Getpid()), FD: int32(fd)}]
	if !r.MPTCP || uint64(r.Inode) != st.Ino || r.ID.Cookie != 0 {
		t.Errorf("%+v", r)
	}
}

// A pin is used again, one of another build is not, and neither is a folder
// where others may have pinned.
func TestSocketsPinned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(mountBPFFS(t), "deadpeer")
	c := must(w.server.Listen(t.Context(), "tcp4", "127.0.0.1:0"))(t)
	defer func() { _ = c.Close() }()
	first := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if pinned, why := first.Pinned(); !pinned || why != nil {
		t.Fatalf("pinned %v, %v", pinned, why)
	}
	pin := first.pin
	stale := filepath.Join(dir, "sockets-0123456789abcdef")
	ok(t, os.Rename(pin, stale))
	second := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if left := must(filepath.Glob(dir + "/*"))(t); !slices.Equal(left, []string{pin}) {
		t.Errorf("left %q, want %q", left, pin)
	}
	third := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if third.iter != nil {
		t.Error("loaded although it was pinned")
	}
	for _, s := range []*Sockets{second, third} {
		if got := records(t, s)[conn.Owner{PID: int32(os.Getpid()), FD: int32(fdOf(t, c))}]; got.State != conn.Listen {
			t.Errorf("%+v", got)
		}
		ok(t, s.Close())
	}
	ok(t, os.Chmod(dir, 0o777))
	open := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if pinned, why := open.Pinned(); pinned || !errors.Is(why, errNotOurs) {
		t.Errorf("folder that others may write to: pinned %v, %v", pinned, why)
	}
	ok(t, open.Close())
	other := must(OpenSockets(SocketsOptions{Dir: t.TempDir()}))(t)
	if pinned, why := other.Pinned(); pinned || why == nil {
		t.Errorf("folder on no bpffs: pinned %v, %v", pinned, why)
	}
	ok(t, other.Close())
}
