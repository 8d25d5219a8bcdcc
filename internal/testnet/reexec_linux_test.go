package testnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// modeVariable makes the test binary play a part of TestReexec.
const modeVariable = "TESTNET_MODE"

func runMode(mode string) int {
	ctx := context.Background()
	switch mode {
	case "exit":
		return reexec(ctx, func() int { return 7 })
	case "signal":
		return reexec(ctx, waitSignal)
	case "cancel":
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		return reexec(ctx, waitSignal)
	case "killed":
		return reexec(ctx, func() int {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		})
	case "main":
		return Main(run(9))
	case "forbidding": // root of a user namespace, which it lets make no more
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			fmt.Println(err)
			return 99
		}
		cmd := play("main", slices.DeleteFunc(os.Environ(), isMode)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); cmd.ProcessState == nil {
			fmt.Println(err)
			return 99
		}
		return cmd.ProcessState.ExitCode()
	default:
		fmt.Println("no mode", mode)
		return 99
	}
}

type run int

func (r run) Run() int { return int(r) }

// reexec uses Reexec as a command does.
func reexec(ctx context.Context, inside func() int) int {
	code, reexeced, err := Reexec(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Println(err)
		return 99
	}
	if reexeced {
		return code
	}
	return inside()
}

func waitSignal() int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	fmt.Println("ready")
	if s, ok := (<-signals).(syscall.Signal); ok {
		return int(s)
	}
	return 99
}

func isMode(s string) bool {
	return strings.HasPrefix(s, modeVariable+"=") || strings.HasPrefix(s, reexecMark+"=")
}

const nobody = 65534

// play starts this test binary as nobody.
func play(mode string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(env, modeVariable+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

// needRoot skips what needs more than one user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv(reexecMark) != "" {
		t.Skip("needs root: in this user namespace there is no other user")
	}
}

// needUserNS skips where nobody may make user namespaces.
func needUserNS(t *testing.T) {
	t.Helper()
	needRoot(t)
	if out, err := play("exit").CombinedOutput(); strings.Contains(string(out), ErrForbidden.Error()) {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s: %v", out, err)
		}
		t.Skipf("%s", out)
	}
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func TestReexec(t *testing.T) {
	t.Parallel()
	needUserNS(t)
	for mode, want := range map[string]int{"exit": 7, "cancel": int(unix.SIGTERM), "killed": 128 + int(unix.SIGKILL), "main": 9} {
		t.Run(mode, func(t *testing.T) {
			out, err := play(mode).CombinedOutput()
			if got := exitCode(t, err); got != want {
				t.Errorf("exit code %d, want %d: %s", got, want, out)
			}
		})
	}
	t.Run("signal", func(t *testing.T) {
		cmd := play("signal")
		cmd.SysProcAttr.Setsid = true // without a terminal, which would signal both
		out := must(cmd.StdoutPipe())(t)
		check(t, cmd.Start())
		must(bufio.NewReader(out).ReadString('\n'))(t)
		check(t, cmd.Process.Signal(unix.SIGINT))
		if got := exitCode(t, cmd.Wait()); got != int(unix.SIGINT) {
			t.Errorf("exit code %d, want that of SIGINT", got)
		}
	})
}

func TestReexecOnlyOnce(t *testing.T) {
	needRoot(t)
	out, err := play("exit", reexecMark+"=1").CombinedOutput()
	if got := exitCode(t, err); got != 99 || !strings.Contains(string(out), ErrForbidden.Error()) {
		t.Errorf("exit code %d: %s", got, out)
	}
}

func TestReexecForbidden(t *testing.T) {
	t.Parallel()
	needUserNS(t)
	for env, want := range map[string]struct {
		code int
		text string
	}{
		"CI=":     {0, "SKIP: "},
		"CI=true": {1, "FAIL: "},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = []string{env, modeVariable + "=forbidding"}
		var ids []syscall.SysProcIDMap
		for _, id := range []int{0, nobody} {
			ids = append(ids, syscall.SysProcIDMap{ContainerID: id, HostID: id, Size: 1})
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			// Root of the user namespace from before it runs.
			Credential: &syscall.Credential{},
		}
		out, err := cmd.CombinedOutput()
		if got := exitCode(t, err); got != want.code || !strings.Contains(string(out), want.text) ||
			!strings.Contains(string(out), "user.max_user_namespaces=10000") {
			t.Errorf("%s: exit code %d: %s", env, got, out)
		}
	}
}

// TestUnprivileged runs the other tests as nobody.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	needUserNS(t)
	cmd := play("")
	cmd.Env = slices.DeleteFunc(os.Environ(), isMode)
	cmd.Args = append(cmd.Args, "-test.v", "-test.short", "-test.run=^Test(Connect|Sysctl|Start|Cut|CutPorts|LinkDown|Reboot|Router|NAT|Record)$")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestNAT") || strings.Contains(string(out), "--- SKIP") {
		t.Errorf("%v\n%s", err, out)
	}
}
