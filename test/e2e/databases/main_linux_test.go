// Package databases runs deadpeer against real Firebird, PostgreSQL and
// MariaDB servers in network namespaces: a client changes a row, its link is
// cut before it commits, and another client waits for the row.
//
// The tests start the servers themselves, as their own users, on free ports,
// with their data in temporary folders, and end them. They need root, and the
// Debian packages that .ci/packages names; where something is missing they are
// skipped, with CI set in the environment they fail.
//
// make bench-databases measures the times that README.md tells of.
package databases

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/cli"
	"deadpeer/internal/testnet"
)

// role makes the test binary play deadpeer; isolated says that it has done
// what it does before.
const (
	role     = "DEADPEER_E2E_DEADPEER"
	isolated = "DEADPEER_E2E_ISOLATED"
)

func TestMain(m *testing.M) {
	if os.Getenv(role) != "" {
		os.Exit(deadpeer())
	}
	// The tests wait more than they compute: all of them at once.
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(testnet.Main(m))
}

// deadpeer is what cmd/deadpeer does, with a /run of its own, so that nothing
// of this host's deadpeer is met.
func deadpeer() int {
	if os.Getenv(isolated) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	runtime.LockOSThread() // what follows is of this thread; execve(2) makes it the only one
	for _, err := range []error{
		unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "test program:", err)
			return 125
		}
	}
	fmt.Fprintln(os.Stderr, "test program:", syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolated+"=1")))
	return 125
}

// missing skips, or fails where continuous integration was to have everything.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// program finds a program that a test needs.
func program(t testing.TB, name string, extra ...string) string {
	t.Helper()
	for _, candidate := range append(extra, name) {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	missing(t, "%s is not installed (.ci/packages)", name)
	return ""
}

// credential is another user's; becoming one takes the real root.
func credential(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		missing(t, "needs root, to start servers as their own users")
	}
	u, err := user.Lookup(name)
	if err != nil {
		missing(t, "no user %s (.ci/packages): %v", name, err)
	}
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		ok(t, err)
		return uint32(n)
	}
	return &syscall.Credential{Uid: number(u.Uid), Gid: number(u.Gid)}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func at(addr netip.Addr, port int) string {
	return netip.AddrPortFrom(addr, uint16(port)).String()
}

func contains(t testing.TB, what, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%s does not say %q:\n%s", what, w, text)
		}
	}
}
