package held

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// A pid is used again 100,000 times, by processes that have the right and the
// wrong socket under the same descriptor in turn: the wrong one is never taken
// nor changed, though the Taker keeps what it knows of processes.
func TestTakeWhilePIDReused(t *testing.T) {
	t.Parallel()
	if os.Getpid() != 1 {
		again := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
		again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		if os.Geteuid() != 0 {
			again.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
			again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		out, err := again.CombinedOutput()
		switch {
		case os.Getenv("CI") == "" && (err != nil && len(out) == 0 || bytes.Contains(out, []byte("SKIP"))):
			t.Skipf("no pid namespace, or no C compiler: %v %s", err, out)
		case err != nil:
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	reuse := filepath.Join(t.TempDir(), "reuse")
	if out, err := exec.Command("gcc", "-O2", "-o", reuse, "testdata/reuse.c").CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	const rounds, slot = 100_000, 200
	fds, cookies := sockets(t, 2)
	right, wrong := fds[0], fds[1]
	taker := New()
	defer taker.Close()
	outcomes := map[Refusal]int{}
	// A thread of ours may be given the pid, and keeps it: then another serves.
	hits, pid := 0, 4242
	for ; hits < rounds && pid < 14242; pid += 1000 {
		cmd := exec.Command(reuse, strconv.Itoa(rounds-hits), strconv.Itoa(pid), "3", "4", strconv.Itoa(slot))
		cmd.ExtraFiles = []*os.File{file(t, right), file(t, wrong)}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- cmd.Wait() }()
		owner := []conn.Owner{{PID: int32(pid), FD: slot}}
		for running := true; running; {
			select {
			case err := <-ended:
				if running = false; err != nil {
					t.Fatal(err)
				}
			default:
			}
			s, refusal := taker.Take(cookies[0], owner)
			if outcomes[refusal]++; refusal != None {
				continue
			}
			if err := s.Set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77); err != nil {
				t.Error(err)
			}
			taker.Give(s)
		}
		n := 0
		if _, err := fmt.Sscan(out.String(), &n); err != nil {
			t.Fatalf("%q: %v", out.String(), err)
		}
		hits += n
	}
	if hits != rounds {
		t.Errorf("a pid was used %d times, want %d", hits, rounds)
	}
	if outcomes[None] == 0 || outcomes[Reused] == 0 {
		t.Errorf("nothing was put to the test: %v", outcomes)
	}
	for r := range outcomes {
		if r != None && r != Reused && r != OwnerGone {
			t.Errorf("outcome %v", r)
		}
	}
	for fd, want := range map[int]bool{right: true, wrong: false} {
		if idle, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); err != nil || (idle == 77) != want {
			t.Errorf("descriptor %d has an idle time of %d (%v); changed is to be %v", fd, idle, err, want)
		}
	}
	t.Logf("used %d times, up to pid %d: %v", hits, pid-1000, outcomes)
}

// A pid that a thread was given is no process any more.
func TestTakeFromAThread(t *testing.T) {
	t.Parallel()
	tids, stop := make(chan int), make(chan bool)
	defer close(stop)
	for range 2 { // one of them may have the first thread, whose id is our pid
		go func() {
			runtime.LockOSThread()
			tids <- unix.Gettid()
			<-stop
		}()
	}
	tid := max(<-tids, <-tids)
	taker := New()
	defer taker.Close()
	fds, cookies := sockets(t, 1)
	if _, refusal := taker.Take(cookies[0], []conn.Owner{{PID: int32(tid), FD: int32(fds[0])}}); refusal != OwnerGone {
		t.Errorf("refusal %q, want %q", refusal, OwnerGone)
	}
}

// file is a duplicate of a descriptor, to be inherited.
func file(t *testing.T, fd int) *os.File {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(dup), "socket")
	t.Cleanup(func() { _ = f.Close() })
	return f
}
