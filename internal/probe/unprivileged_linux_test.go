package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// Without CAP_NET_ADMIN a program's own sockets are asked by keepalive.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		t.Skip("needs root, to become another user")
	}
	const nobody = 65534
	cmd := command("unprivileged")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.Output(); err != nil || string(out) != "ok\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// askUnprivileged asks sockets of its own on the loopback, and one of init's.
func askUnprivileged() error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err != nil {
		return err
	}
	runtime.KeepAlive(s)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var fd int
	if err := raw.Control(func(f uintptr) { fd = int(f) }); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	before, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return err
	}
	book := &ledger{}
	a := New(Options{Journal: book})
	target := Target{ID: conn.ID{Cookie: cookie}, State: conn.Established, Owners: []conn.Owner{{PID: int32(os.Getpid()), FD: int32(fd)}}}
	var r Result
	for r.Refusal = TooFresh; r.Refusal == TooFresh; time.Sleep(100 * time.Millisecond) {
		a.Ask([]Target{target}, func(_ int, got Result) { r = got })
	}
	if r.Refusal != NotRefused || r.Method != Keepalive {
		return fmt.Errorf("own socket: %+v", r)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		after, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return err
		}
		if after.Segs_in != before.Segs_in {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("no answer")
		}
	}
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil || reuse != 1 {
		return fmt.Errorf("SO_REUSEADDR %d, %w", reuse, err)
	}
	target.Owners = []conn.Owner{{PID: 1, FD: 0}}
	a.Ask([]Target{target}, func(_ int, got Result) { r = got })
	if r.Refusal != NeedsPtrace || !r.Refusal.Privilege() || !strings.Contains(r.Refusal.Error(), "CAP_SYS_PTRACE") {
		return fmt.Errorf("socket of init: %+v", r)
	}
	if err := a.Close(); err != nil || len(book.outstanding) != 0 {
		return fmt.Errorf("%d outstanding, %w", len(book.outstanding), err)
	}
	fmt.Println("ok")
	return nil
}
