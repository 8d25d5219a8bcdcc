package wine

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
)

// prefix is a Windows of its own: folder, registry, wineserver. Its sockets,
// which wineserver makes, are those of one host.
type prefix struct {
	dir  string
	wine string
	host *testnet.Host
}

// registry is what every Windows has of what deadpeer looks at.
const registry = `WINE REGISTRY Version 2
;; All keys relative to \\Machine

#arch=win64

[System\\CurrentControlSet\\Services\\Tcpip\\Parameters]
`

// newPrefix makes a prefix on the host, to be gone with the test.
func newPrefix(t *testing.T, host *testnet.Host) *prefix {
	t.Helper()
	wine := need(t, "Wine", "wine64", "wine64", "/usr/lib/wine/wine64")
	server := need(t, "Wine's server", "wine64", "wineserver", "/usr/lib/wine/wineserver")
	compiler := need(t, "a C compiler for Windows", "gcc-mingw-w64-x86-64", "x86_64-w64-mingw32-gcc")
	p := &prefix{dir: t.TempDir(), wine: wine, host: host}
	system := filepath.Join(p.dir, "drive_c/windows/system32")
	ok(t, os.MkdirAll(system, 0o755))
	ok(t, os.Mkdir(filepath.Join(p.dir, "dosdevices"), 0o755))
	ok(t, os.Symlink("../drive_c", filepath.Join(p.dir, "dosdevices/c:")))
	ok(t, os.Symlink("/", filepath.Join(p.dir, "dosdevices/z:")))
	ok(t, os.WriteFile(filepath.Join(p.dir, "system.reg"), []byte(registry), 0o600))
	// Wine is not to fill the prefix from wine.inf: that takes 15 s.
	ok(t, os.WriteFile(filepath.Join(p.dir, ".update-timestamp"), []byte("disable\n"), 0o600))
	compile := exec.CommandContext(t.Context(), compiler, "-shared", "-O2", "-s",
		"-o", filepath.Join(system, "bcryptprimitives.dll"), "testdata/prng.c", "-ladvapi32")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", compile, err, out)
	}
	// The context of the test ends before the cleanup does. Where there is no
	// cleanup, since the test was killed, the server ends by itself.
	daemon := p.command(context.WithoutCancel(t.Context()), server, "--foreground", "--persistent=60")
	said := file(t)
	daemon.Stderr = said
	ok(t, host.Start(daemon))
	t.Cleanup(func() {
		_ = daemon.Process.Signal(unix.SIGINT) // SIGTERM would leave its services
		_ = daemon.Wait()                      // it never exits with 0
		if t.Failed() {
			t.Logf("wineserver: %s", content(t, said))
		}
	})
	return p
}

// need finds a program by name or path, and else skips, or fails where CI is
// set.
func need(t *testing.T, what, debian string, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	say := t.Skipf
	if os.Getenv("CI") != "" {
		say = t.Fatalf
	}
	say("no Windows code was run: %s is missing (Debian: %s)", what, debian)
	return ""
}

// command is a program that finds the prefix.
func (p *prefix) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "WINEPREFIX="+p.dir, "HOME="+p.dir, "WINEDEBUG=-all", "DISPLAY=",
		// No menus, and nothing to download.
		"WINEDLLOVERRIDES=mscoree=;mshtml=;winemenubuilder.exe=",
		// Wine takes its DLLs from where it is installed, as while it makes a
		// prefix. To copy them all (700 MB) would take longer than the tests.
		"WINEBOOTSTRAPMODE=1")
	return cmd
}

// run runs a Windows program to its end in a folder. What it says goes to
// files: a pipe would stay open for as long as the processes that Wine starts
// beside the first program.
func (p *prefix) run(t *testing.T, folder, exe string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := p.command(t.Context(), p.wine, append([]string{exe}, args...)...)
	cmd.Dir = folder
	out, said := file(t), file(t)
	cmd.Stdout, cmd.Stderr = out, said
	ok(t, p.host.Start(cmd))
	err := cmd.Wait()
	stdout, stderr = content(t, out), content(t, said)
	if exit, is := errors.AsType[*exec.ExitError](err); err != nil && (!is || !exit.Exited()) {
		t.Fatalf("%s: %v\n%s%s", exe, err, stdout, stderr)
	}
	return cmd.ProcessState.ExitCode(), stdout, stderr
}

func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	ok(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	ok(t, err)
	return string(b)
}

// toolchain runs the go command for Windows, in the root of the repository.
func toolchain(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &said)
	}
	return string(out)
}

// build builds a program and tells where it is.
func build(t *testing.T, pkg string) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), filepath.Base(pkg)+".exe")
	toolchain(t, "build", "-buildvcs=false", "-o", exe, pkg)
	return exe
}

const root = "../.."

// lookAtSources makes go test see that the result depends on all of the tree:
// what a test has looked at is what its cached result is good for.
func lookAtSources(t *testing.T) {
	t.Helper()
	ok(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		return err
	}))
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
