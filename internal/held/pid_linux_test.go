package held

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	const rounds, pid, slot = 100_000, 4242, 200
	fds, cookies := sockets(t, 2)
	right, wrong := fds[0], fds[1]
	cmd := exec.Command(reuse, strconv.Itoa(rounds), strconv.Itoa(pid), "3", "4", strconv.Itoa(slot))
	cmd.ExtraFiles = []*os.File{file(t, right), file(t, wrong)}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	ended := make(chan error)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	taker := New()
	defer taker.Close()
	owner := []conn.Owner{{PID: pid, FD: slot}}
	outcomes := map[Refusal]int{}
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
	var hits int
	if _, err := fmt.Sscan(out.String(), &hits); err != nil || hits < rounds*9/10 {
		t.Errorf("the pid was used %d times (%v), want about %d", hits, err, rounds)
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
	t.Logf("the pid was used %d times: %v", hits, outcomes)
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
