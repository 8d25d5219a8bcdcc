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

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/netns"
	"deadpeer/keepalive"
)

// records lists the connections of namespaces by their descriptors in this
// process.
func records(t *testing.T, s *Sockets, spaces ...*netns.NS) map[int32]Record {
	t.Helper()
	at := map[Handle][]int32{}
	ok(t, s.Descriptors(t.Context(), func(d Descriptor) {
		if int(d.Owner.PID) == os.Getpid() {
			if slices.Contains(at[d.Handle], d.Owner.FD) {
				t.Errorf("%+v: twice", d)
			}
			at[d.Handle] = append(at[d.Handle], d.Owner.FD)
		}
	}))
	m := map[int32]Record{}
	for _, ns := range spaces {
		ok(t, s.Connections(t.Context(), ns, nil, func(r *Record) error {
			for _, fd := range at[r.Handle] {
				m[fd] = *r
			}
			return nil
		}))
	}
	return m
}

// Every connection and its descriptor are told with what the kernel tells by
// other ways, through many fillings of the kernel's buffer.
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
	got := records(t, s, w.server.NS(), w.peer.NS())
	for i, c := range ends {
		control(t, c, func(fd int) {
			r, found := got[int32(fd)]
			if !found {
				t.Errorf("descriptor %d is missing", fd)
				return
			}
			want := must(keepalive.GetFD(uintptr(fd)))(t)
			var st unix.Stat_t
			ok(t, unix.Fstat(fd, &st))
			ns := w.server.NS().Inode()
			if i%2 == 0 {
				ns = w.peer.NS().Inode()
			}
			if r.Sock.ID() != (conn.ID{NetNS: ns, Cookie: must(unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE))(t)}) ||
				uint64(r.Sock.Inode) != st.Ino || r.Handle.Inode != r.Sock.Inode {
				t.Errorf("descriptor %d: %+v", fd, r)
			}
			if r.Settings.Settings != want {
				t.Errorf("descriptor %d: settings %+v, want %+v", fd, r.Settings, want)
			}
			if own := r.Settings.Own; (own.Idle != 0) != (i%2 == 0) || (own.Interval != 0) != (i%5 == 0) || (own.Probes != 0) != (i%5 == 0) {
				t.Errorf("descriptor %d: own %+v", fd, own)
			}
		})
	}
	stop := errors.New("stop")
	if err := s.Connections(t.Context(), w.server.NS(), nil, func(*Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of visit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Connections(ctx, w.server.NS(), nil, func(*Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("error of ctx: %v", err)
	}
	if err := s.Descriptors(ctx, func(Descriptor) {}); !errors.Is(err, context.Canceled) {
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

	handle := records(t, s, w.peer.NS())[fdOf(t, c)].Handle
	if handle.Inode == 0 || handle.Place == 0 {
		t.Fatalf("handle %+v", handle)
	}
	owners := map[conn.Owner]int{}
	ok(t, s.Descriptors(t.Context(), func(d Descriptor) {
		if d.Handle == handle {
			owners[d.Owner]++
		}
	}))
	own := func(fd int) conn.Owner { return conn.Owner{PID: int32(os.Getpid()), FD: int32(fd)} }
	control(t, c, func(fd int) {
		want := map[conn.Owner]int{own(fd): 1, own(int(file.Fd())): 1, {PID: int32(child.Process.Pid), FD: 3}: 1}
		if !maps.Equal(owners, want) {
			t.Errorf("owners %v, want %v; the thread has %d", owners, want, high)
		}
	})
}

func fdOf(t *testing.T, c syscall.Conn) (n int32) {
	t.Helper()
	raw := must(c.SyscallConn())(t)
	ok(t, raw.Control(func(fd uintptr) { n = int32(fd) }))
	return n
}

// Processes are told by the number they have where the reader is.
func TestSocketsPIDNamespace(t *testing.T) {
	if os.Getenv("DEADPEER_BPF_TEST") == "pids" {
		s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
		var st unix.Stat_t
		ok(t, unix.Fstat(3, &st))
		ok(t, s.Descriptors(t.Context(), func(d Descriptor) {
			if uint64(d.Handle.Inode) == st.Ino {
				fmt.Println("record", d.Owner.PID, d.Owner.FD)
			}
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

// A pin is used again, one of another build is not, and neither is a folder
// where others may have pinned.
func TestSocketsPinned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(mountBPFFS(t), "deadpeer")
	c := w.connect("tcp4", 1)[0].client
	first := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if pinned, why := first.Pinned(); !pinned || why != nil {
		t.Fatalf("pinned %v, %v", pinned, why)
	}
	pins := pins(dir)
	ok(t, os.Rename(pins[0], filepath.Join(dir, "sockets-0123456789abcdef")))
	second := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if left := must(filepath.Glob(dir + "/*"))(t); !slices.Equal(left, pins[:]) {
		t.Errorf("left %q, want %q", left, pins)
	}
	third := must(OpenSockets(SocketsOptions{Dir: dir}))(t)
	if id := func(s *Sockets) link.ID { return must(s.lists[connections].Info())(t).ID }; id(third) != id(second) {
		t.Error("loaded although it was pinned")
	}
	for _, pin := range pins { // by another build
		ok(t, os.Remove(pin))
	}
	for _, s := range []*Sockets{second, third} {
		if got, found := records(t, s, w.peer.NS())[fdOf(t, c)]; !found || got.Sock.Cookie != cookieOf(t, c) {
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
