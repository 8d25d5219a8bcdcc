package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/cli"
	"deadpeer/internal/testnet"
)

// TestMain is deadpeer itself under that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "deadpeer" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(testnet.Main(m))
}

// ownCgroup makes a cgroup of the test's own and gives its path below the root.
// It is an error where programs cannot be loaded, or no cgroup can be made; a
// failure in continuous integration.
func ownCgroup(t *testing.T) (cgroup string, err error) {
	t.Helper()
	loaded, err := bpf.OpenSockets(bpf.SocketsOptions{NoPin: true})
	if err == nil {
		err = loaded.Close()
	}
	root, rootErr := bpf.CgroupRoot()
	cgroup = fmt.Sprintf("/deadpeer-programs-test-%d-%s", os.Getpid(), t.Name())
	if err = errors.Join(err, rootErr); err == nil {
		err = os.Mkdir(root+cgroup, 0o755)
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		return "", err
	}
	t.Cleanup(func() {
		for end := time.Now().Add(10 * time.Second); unix.Rmdir(root+cgroup) != nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%s cannot be removed", cgroup)
				return
			}
		}
	})
	return cgroup, nil
}

// bpffs is a bpffs of the test's own.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	ok(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { ok(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// deadpeerHost is a host with folders of its own for what deadpeer leaves.
type deadpeerHost struct {
	host   *testnet.Host
	root   string // of cgroup v2, where it sees its own
	cgroup string // its folder
	dir    string // with deadpeer in it
	holder int    // a process that holds the mounts
}

func newDeadpeerHost(t *testing.T, host *testnet.Host) *deadpeerHost {
	t.Helper()
	h := &deadpeerHost{host: host, dir: t.TempDir()}
	cgroup, err := ownCgroup(t)
	if err != nil {
		t.Skip(err)
	}
	ok(t, os.Symlink(must(os.Executable())(t), h.dir+"/deadpeer"))
	h.root = must(bpf.CgroupRoot())(t)
	h.cgroup = h.root + cgroup
	// All the cgroups it sees are the test's: it would clean up those of others.
	const mounts = `mount -t tmpfs -o mode=755 tmpfs /run && mount -t bpf bpf /sys/fs/bpf && mount --bind "$1" "$2" && echo && read end`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", mounts, "sh", h.cgroup, h.root)
	in, out := must(cmd.StdinPipe())(t), must(cmd.StdoutPipe())(t)
	cmd.Stderr = os.Stderr
	ok(t, cmd.Start())
	t.Cleanup(func() { _, _ = in.Close(), cmd.Wait() })
	must(out.Read(make([]byte, 1)))(t)
	h.holder = cmd.Process.Pid
	return h
}

// command is a program on the host, in its cgroup.
func (h *deadpeerHost) command(args ...string) *exec.Cmd {
	const enter = `echo 0 >"$1"/cgroup.procs && PATH="$2:$PATH" && shift 2 && exec "$@"`
	cmd := exec.Command("nsenter", append([]string{
		"--mount=/proc/" + strconv.Itoa(h.holder) + "/ns/mnt", "--net=/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(h.host.NS().Fd())),
		"sh", "-c", enter, "sh", h.root, h.dir,
	}, args...)...)
	cmd.WaitDelay = time.Second
	return cmd
}

// output is what a program says, which is to succeed.
func (h *deadpeerHost) output(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := h.command(args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v: %v: %s", args, err, said.String())
	}
	return string(out), said.String()
}

// nothingLeft makes sure that nothing of programs that ran is there.
func (h *deadpeerHost) nothingLeft(t *testing.T) {
	t.Helper()
	var left string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		pins, _ := filepath.Glob(fmt.Sprintf("/proc/%d/root/sys/fs/bpf/deadpeer/hooks/*", h.holder))
		cgroups, _ := filepath.Glob(h.cgroup + "/deadpeer-run-*")
		if left = strings.Join(append(pins, cgroups...), " "); left == "" {
			return
		}
	}
	t.Errorf("%s is left", left)
}

// goBuild builds a static program of testdata.
func goBuild(t *testing.T, dir, name string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	build := exec.Command("go", "build", "-o", path, "./testdata/"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}
