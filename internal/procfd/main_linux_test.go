package procfd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// TestMain lets the test binary be the processes that the tests look at.
func TestMain(m *testing.M) {
	role, arg, _ := strings.Cut(os.Getenv("PROCFD_TEST_ROLE"), " ")
	var err error
	switch role {
	case "":
		os.Exit(m.Run())
	case "hold":
		err = hold(arg)
	case "look":
		err = look()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// hold opens as many sockets as it is told, takes a hostile name, says so and
// stays until its standard input ends.
func hold(arg string) error {
	n, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/proc/self/comm", []byte(hostileName), 0); err != nil {
		return err
	}
	for range n {
		if _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// look prints what Sockets sees of the host, and the sockets of its own.
func look() error {
	if _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
		return err
	}
	own := 0
	stats, err := New("/proc").Sockets(context.Background(), SocketsOptions{Workers: 1}, func(_ int, _ uint32, o conn.Owner) {
		if o.PID == int32(os.Getpid()) {
			own++
		}
	})
	if err != nil {
		return err
	}
	_, _, err = New("/proc").Environ(int32(os.Getppid()), "HOME")
	fmt.Printf("%d %d\n%s\n%v\n", own, stats.Hidden, stats.Missing(), err)
	return nil
}

const hostileName = "a) R 1 (\n\x1b[31m"

// command is the test binary in a role. It is named in a way that also users
// who may not enter the folder it lies in can run.
func command(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PROCFD_TEST_ROLE="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// holder starts a process that holds n sockets until the test ends.
func holder(t testing.TB, n int) int32 {
	t.Helper()
	cmd := command(fmt.Sprintf("hold %d", n))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("holder: %v", err)
		}
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("holder said %q, %v", line, err)
	}
	return int32(cmd.Process.Pid)
}

func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}
