// Package databases runs deadpeer against real Firebird, PostgreSQL,
// MariaDB and MySQL servers in network namespaces: a client changes a row, its link is
// cut before it commits, and another client waits for the row.
//
// The tests start the servers themselves, and end them: see package
// servertest. MySQL, which Debian does not have, is among them where a mysqld
// of it is in PATH.
//
// make bench-databases measures the times that README.md tells of.
package databases

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
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

// deadpeer is what cmd/deadpeer does, with a /run, a /var/lib and an
// /etc/sysctl.d of its own, so that nothing of this host's deadpeer is met, and
// nothing is set for this host's next boot.
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
		unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, "mode=0755"),
		unix.Mount("tmpfs", "/etc/sysctl.d", "tmpfs", 0, "mode=0755"), // tune set writes there
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "test program:", err)
			return 125
		}
	}
	fmt.Fprintln(os.Stderr, "test program:", syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolated+"=1")))
	return 125
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
