package servertest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"deadpeer/internal/testnet"
)

// Missing skips the test, or fails it where nothing may be missing.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Program finds a program that the test needs, by its name or other paths.
func Program(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	Missing(t, "%s is not installed (.ci/packages)", names[0])
	return ""
}

// Credential is another user's identity; becoming one takes the real root.
func Credential(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		Missing(t, "needs root, to start servers as their own users")
	}
	u, err := user.Lookup(name)
	if err != nil {
		Missing(t, "no user %s (.ci/packages): %v", name, err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		t.Fatalf("user %s has the ids %s and %s", name, u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// Folder is one that other users may enter; testing's own they may not.
func Folder(t testing.TB, owner *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "deadpeer-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Write makes a file that everybody may read, and gives its path.
func Write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Run runs a program to its end as another user.
func Run(t testing.TB, owner *syscall.Credential, dir string, env []string, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), env...), strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Serve starts a server on a host, as another user when owner is not nil, and
// ends it with the test. A shell keeps watch: should this process die, its
// input ends, and so does the server. What the server says goes to a file in
// dir, and is shown when the test fails. The process id is the server's.
func Serve(t testing.TB, host *testnet.Host, owner *syscall.Credential, dir string, env []string, args ...string) (pid int) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	told, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	const watch = `"$@" </dev/null 3>&- & p=$!; echo $p >&3; exec 3>&-; cat >/dev/null; kill -KILL $p; wait $p`
	cmd := exec.Command("sh", append([]string{"-c", watch, "sh"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = dir, append(os.Environ(), env...), log, log, []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait() // killed
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			t.Logf("%s: %s", args[0], out)
		}
		_ = log.Close()
	})
	_ = tell.Close() // the shell has its own
	defer func() { _ = told.Close() }()
	number, err := io.ReadAll(told)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(number), &pid); err != nil {
		t.Fatalf("start %s: %v", args[0], err)
	}
	return pid
}

// Await polls for what comes soon on an idle machine.
func Await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within 60 s", what)
		}
	}
}
