// Package wine runs what deadpeer has for Windows under Wine: the tests of
// its packages, its command line, and a connection whose policy is read back
// from the Linux below.
//
// Needs Wine and a C compiler for Windows (Debian: wine64 and
// gcc-mingw-w64-x86-64), and what internal/testnet needs. Wine 8 has no
// TCP_KEEPIDLE, so that SIO_KEEPALIVE_VALS is what runs.
package wine

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/cli"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// pure are the packages without Windows code of their own whose results
// deadpeer shows on Windows.
var pure = []string{"deadpeer/forecast", "deadpeer/internal/conn", "deadpeer/internal/verdict"}

// The tests of the packages that have files for Windows, and of the pure ones.
func TestPackages(t *testing.T) {
	t.Parallel()
	lookAtSources(t)
	p := newPrefix(t, newHost(t))
	const list = "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}\t{{.Dir}}\t{{.GoFiles}} {{.TestGoFiles}} {{.XTestGoFiles}}\n{{end}}"
	bin, ran := t.TempDir(), 0
	for line := range strings.Lines(toolchain(t, "list", "-f", list, "./...")) {
		words := strings.Split(line, "\t")
		if len(words) != 3 || !slices.Contains(pure, words[0]) && !strings.Contains(words[2], "_windows") {
			continue
		}
		ran++
		t.Run(words[0], func(t *testing.T) {
			exe := filepath.Join(bin, path.Base(words[0])+".test.exe")
			toolchain(t, "test", "-c", "-o", exe, words[0])
			if code, stdout, stderr := p.run(t, words[1], exe, "-test.timeout=60s"); code != 0 {
				t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
			}
		})
	}
	if ran <= len(pure) {
		t.Errorf("%d packages: those with files for Windows are missing", ran)
	}
}

// What deadpeer says on Windows is what it says on Linux, byte for byte, or
// that it cannot.
func TestCommands(t *testing.T) {
	t.Parallel()
	p := newPrefix(t, newHost(t))
	exe := build(t, "./cmd/deadpeer")
	for line, want := range map[string]struct {
		code   int
		stderr string
	}{
		"profiles":         {},
		"profiles -o json": {},
		"forecast --os linux --hz 250 --profile lan --situation idle":         {},
		"forecast --os linux --hz 250 --profile lan --situation idle -o json": {},
		"forecast --profile nowhere":                                          {2, "deadpeer: --profile: "},
		"scan":                                                                {4, "deadpeer: list connections on windows: unsupported operation\n"},
		"check":                                                               {4, "deadpeer: ask peers on windows: unsupported operation\n"},
	} {
		args := strings.Fields(line)
		code, stdout, stderr := p.run(t, t.TempDir(), exe, args...)
		if code != want.code || !strings.HasPrefix(stderr, want.stderr) || want.stderr == "" && stderr != "" {
			t.Errorf("%s: exit code %d, want %d; stderr %q, want %q", line, code, want.code, stderr, want.stderr)
		}
		var here bytes.Buffer
		if want.code == 0 && cli.Run(t.Context(), args, nil, &here, &here) != 0 || stdout != here.String() {
			t.Errorf("%s: got\n%s\non Linux it is\n%s", line, stdout, &here)
		}
	}
	if code, stdout, stderr := p.run(t, t.TempDir(), exe, "--version"); code != 0 || !strings.HasPrefix(stdout, "deadpeer version ") {
		t.Errorf("version: exit code %d, %q, %q", code, stdout, stderr)
	}
}

// A Windows program sets its policy; Linux holds those very values, and gives
// the connection up when forecast says, with Windows's error. The number of
// probes, which SIO_KEEPALIVE_VALS cannot set, is the host's.
func TestPolicyReachesTheKernel(t *testing.T) {
	t.Parallel()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	windows, err := world.Host("windows")
	ok(t, err)
	peer, err := world.Host("peer")
	ok(t, err)
	link, err := world.Connect(windows, peer)
	ok(t, err)
	want := keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: 3 * time.Second, Interval: time.Second, Probes: 2}}
	ok(t, windows.SetSysctl("net.ipv4.tcp_keepalive_probes", fmt.Sprint(want.Probes)))
	l, err := peer.Listen(t.Context(), "tcp4", netip.AddrPortFrom(link.IPv4(peer), 0).String())
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })

	p := newPrefix(t, windows)
	dial := p.command(t.Context(), p.wine, build(t, "./test/wine/dial"), l.Addr().String(),
		want.Idle.String(), want.Interval.String(), fmt.Sprint(want.Probes+1))
	stdout, theirs, err := os.Pipe()
	ok(t, err)
	t.Cleanup(func() { _, _ = stdout.Close(), theirs.Close() })
	stderr := file(t)
	dial.Stdout, dial.Stderr = theirs, stderr
	// Wine's own processes may keep the pipe open when dial has ended.
	deadline := time.Now().Add(time.Minute)
	ok(t, stdout.SetReadDeadline(deadline))
	ok(t, l.SetDeadline(deadline))
	before := time.Now()
	ok(t, windows.Start(dial))
	lines := bufio.NewScanner(stdout)
	next := func() string {
		if !lines.Scan() {
			t.Fatalf("dial says nothing: %v: %s", lines.Err(), content(t, stderr))
		}
		return lines.Text()
	}
	c, err := l.AcceptTCP()
	ok(t, err)
	after := time.Now()
	t.Cleanup(func() { _ = c.Close() })
	if got := next(); !strings.HasPrefix(got, "undone probes: ") {
		t.Fatalf("got %q, want the probes undone", got)
	}
	if got := next(); got != "set" {
		t.Fatalf("got %q, want no more undone", got)
	}

	filter, err := conn.ParseFilter([]string{"dst", l.Addr().String()}, conn.Resolver{})
	ok(t, err)
	snap, err := engine.New(engine.Options{RuntimeDir: t.TempDir()}).Scan(t.Context(), engine.Request{
		Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), windows.NS().Fd()), Filter: filter, Settings: true,
	})
	ok(t, err)
	for c := range snap.All() {
		if !c.Known || c.Settings != want {
			t.Errorf("the kernel has %+v (known %v), want %+v", c.Settings, c.Known, want)
		}
	}
	if snap.Len() != 1 {
		t.Fatalf("%d connections", snap.Len())
	}

	const late = 3 * time.Second // the machine may be slow to tell us
	ok(t, link.Cut())
	f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: want.Policy, HZ: hz(t)})
	const timedOut = "ended 10060" // WSAETIMEDOUT
	// The kernel counts from the handshake, which was between before and after.
	if got := next(); got != timedOut || time.Since(before) < f.Earliest || time.Since(after) > f.Latest+late {
		t.Errorf("got %q %v after the handshake, want %q after %v to %v", got, time.Since(after), timedOut, f.Earliest, f.Latest)
	}
	if err := dial.Wait(); err != nil {
		t.Errorf("dial: %v: %s", err, content(t, stderr))
	}
}

// newHost is a host without links.
func newHost(t *testing.T) *testnet.Host {
	t.Helper()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	host, err := world.Host("windows")
	ok(t, err)
	return host
}

// hz is the tick rate of this kernel: the coarse clocks advance once a tick.
func hz(t *testing.T) int {
	t.Helper()
	var res unix.Timespec
	ok(t, unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res))
	return int(time.Second / time.Duration(res.Nano()))
}
