package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrForbidden is matched by errors that say user namespaces cannot be made
// here; their text names what to enable.
var ErrForbidden = errors.New("no CAP_SYS_ADMIN, and user namespaces are forbidden")

// reexecMark keeps a process that has no capabilities in its new user
// namespace from starting itself over and over.
const reexecMark = "DEADPEER_TESTNET_REEXEC"

// Main is os.Exit's argument for TestMain: it runs m with the capabilities
// that testnet needs, in a user namespace when the process lacks them. Where
// that is forbidden it skips with a message, but fails when CI is set in the
// environment.
func Main(m interface{ Run() int }) int {
	code, reexeced, err := Reexec(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	switch {
	case err == nil && reexeced:
		return code
	case err == nil:
		return m.Run()
	case errors.Is(err, ErrForbidden) && os.Getenv("CI") == "":
		fmt.Fprintln(os.Stderr, "SKIP:", err)
		return 0
	default:
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
}

// Reexec does nothing when the process has CAP_SYS_ADMIN, CAP_NET_ADMIN and
// CAP_NET_RAW. Otherwise it runs this program again with args (without the
// program's name) in a new user namespace, where it is root, and a new network
// namespace, and returns its exit code, or 128 plus the number of the signal
// that ended it, with reexeced true. SIGHUP, SIGINT, SIGQUIT and SIGTERM are passed on; when
// ctx is done the program gets SIGTERM, and SIGKILL ten seconds later. The
// error matches [ErrForbidden] where user namespaces are not allowed; in the
// new process it does when its root has no capabilities.
func Reexec(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int, reexeced bool, err error) {
	able, err := capable()
	if err != nil || able {
		return 0, false, err
	}
	if os.Getenv(reexecMark) != "" {
		return 0, false, forbidden(errors.New("root of a new user namespace has no capabilities"))
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), reexecMark+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	// Pdeathsig follows the thread that starts the process (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	defer signal.Stop(signals)
	relayed := make(chan struct{})
	const signalGrace, killAfter = 200 * time.Millisecond, 10 * time.Second
	cmd.WaitDelay = killAfter
	cmd.Cancel = func() error {
		select {
		case <-relayed: // the signal that ended ctx is there already
			return nil
		case <-time.After(signalGrace):
			return cmd.Process.Signal(unix.SIGTERM)
		}
	}
	if err := cmd.Start(); err != nil {
		for _, errno := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EUSERS, unix.EINVAL, unix.ENOSYS} {
			if errors.Is(err, errno) { // clone(2), user_namespaces(7)
				return 0, false, forbidden(err)
			}
		}
		return 0, false, fmt.Errorf("run again in a user namespace: %w", err)
	}
	done, relayEnded := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(relayEnded)
		relay(cmd.Process, signals, relayed, done)
	}()
	err = cmd.Wait()
	close(done)
	<-relayEnded
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		const shellBase = 128 // as sh(1) reports it
		return shellBase + int(status.Signal()), true, nil
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		return 0, true, fmt.Errorf("run again in a user namespace: %w", err)
	}
	return cmd.ProcessState.ExitCode(), true, nil
}

// relay passes signals on until done. What a terminal sends to its foreground
// process group has reached the process, which is in our group, already.
func relay(p *os.Process, signals <-chan os.Signal, relayed chan<- struct{}, done <-chan struct{}) {
	first := true
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			fromTerminal := (s == unix.SIGINT || s == unix.SIGQUIT) && foreground()
			if !fromTerminal {
				_ = p.Signal(s) // it may have ended meanwhile
			}
			if first {
				first = false
				close(relayed)
			}
		}
	}
}

// foreground reports whether this process is in the foreground process group
// of its controlling terminal (tty(4)).
func foreground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(tty) }()
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// capable reports whether the process may make and set up network namespaces.
func capable() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	return data[0].Effective&need == need, nil
}

// forbidden tells what keeps user namespaces from being made, as far as the
// sysctls show it.
func forbidden(err error) error {
	var enable []string
	for _, s := range []struct{ name, bad, good string }{
		{"kernel.unprivileged_userns_clone", "0", "1"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
		{"user.max_user_namespaces", "0", "10000"},
	} {
		value, readErr := os.ReadFile("/proc/sys/" + strings.ReplaceAll(s.name, ".", "/"))
		if readErr == nil && strings.TrimSpace(string(value)) == s.bad {
			enable = append(enable, s.name+"="+s.good)
		}
	}
	hint := "run as root, or allow clone(2) with CLONE_NEWUSER in the container's seccomp profile"
	if enable != nil {
		hint = "run as root, or set " + strings.Join(enable, " and ")
	}
	return fmt.Errorf("%w: %s: %w", ErrForbidden, hint, err)
}
