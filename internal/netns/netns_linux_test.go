package netns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"deadpeer/internal/netns"
	"deadpeer/internal/testnet"

	"golang.org/x/sys/unix"
)

// entering makes the test binary enter the namespace of descriptor 3.
const entering = "NETNS_TEST_ENTER"

func TestMain(m *testing.M) {
	if os.Getenv(entering) != "" {
		ns, err := netns.FromPath("/proc/self/fd/3")
		if err == nil {
			err = ns.Do(func() error { return nil })
		}
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(testnet.Main(m))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// other gives a namespace that is not ours.
func other(t *testing.T) *testnet.Host {
	t.Helper()
	n, err := testnet.New(t.Context())
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	h, err := n.Host("other")
	check(t, err)
	return h
}

func own(t *testing.T) uint32 {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Stat("/proc/self/ns/net", &st))
	return uint32(st.Ino)
}

func here() (uint32, error) {
	ns, err := netns.Current()
	if err != nil {
		return 0, err
	}
	return ns.Inode(), ns.Close()
}

// allHome fails when a thread of this process stays in another namespace.
func allHome(t *testing.T) {
	t.Helper()
	want := fmt.Sprintf("net:[%d]", own(t))
	const patient = 10 * time.Second // ending threads are soon gone
	for deadline := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		check(t, err)
		var stray []string
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != want {
				stray = append(stray, task+" in "+ns)
			}
		}
		if len(stray) == 0 && len(tasks) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %v", want, stray)
		}
	}
}

func TestOpen(t *testing.T) {
	current, err := netns.Current()
	check(t, err)
	self, err := netns.FromPID("/proc", os.Getpid())
	check(t, err)
	path, err := netns.FromPath("/proc/self/ns/net")
	check(t, err)
	for _, ns := range []*netns.NS{current, self, path} {
		if ns.Inode() != own(t) {
			t.Errorf("%s: inode %d, want %d", ns.Name(), ns.Inode(), own(t))
		}
		check(t, ns.Close())
	}
	if want := fmt.Sprintf("pid %d", os.Getpid()); self.Name() != want || current.Name() != "current" || path.Name() != "/proc/self/ns/net" {
		t.Errorf("names %q, %q, %q", self.Name(), current.Name(), path.Name())
	}
}

func TestOpenRefused(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	check(t, os.WriteFile(file, nil, 0o600))
	check(t, unix.Mkfifo(fifo, 0o600))
	for _, path := range []string{file, fifo, dir, "/dev/null"} {
		if ns, err := netns.FromPath(path); err == nil {
			t.Errorf("%s taken for namespace %d", path, ns.Inode())
		}
	}
	if _, err := netns.FromPath(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := netns.FromPID(dir, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

func TestDo(t *testing.T) {
	h, failure := other(t), errors.New("failure")
	inside := func() error {
		if got, err := here(); err != nil || got != h.NS().Inode() {
			return fmt.Errorf("in namespace %d, want %d (%w)", got, h.NS().Inode(), err)
		}
		return failure
	}
	for range 20 {
		if err := h.NS().Do(inside); !errors.Is(err, failure) {
			t.Fatal(err)
		}
		// Also from a thread that is elsewhere, and twice over.
		if err := h.NS().Do(func() error { return h.NS().Do(inside) }); !errors.Is(err, failure) {
			t.Fatal(err)
		}
		if got, err := here(); err != nil || got != own(t) {
			t.Fatalf("outside: in namespace %d, want %d (%v)", got, own(t), err)
		}
	}
	allHome(t)
}

func TestDoAtHome(t *testing.T) {
	ns, err := netns.Current()
	check(t, err)
	ran := false
	check(t, ns.Do(func() error { ran = true; return nil }))
	if !ran {
		t.Error("did not run")
	}
	check(t, ns.Close())
	allHome(t)
}

func TestDoClosed(t *testing.T) {
	h := other(t)
	ns, err := netns.FromPath(fmt.Sprintf("/proc/self/fd/%d", h.NS().Fd()))
	check(t, err)
	check(t, ns.Close())
	if err := ns.Do(func() error { t.Error("ran"); return nil }); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want EBADF", err)
	}
	allHome(t)
}

func TestDoPanic(t *testing.T) {
	h := other(t)
	for range 20 {
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, "boom") || !strings.Contains(p, "TestDoPanic") {
					t.Errorf("recovered %q, want the panic and its stack", p)
				}
			}()
			_ = h.NS().Do(func() error { panic("boom") })
			t.Error("Do returned")
		}()
	}
	allHome(t)
}

func TestDoGoexit(t *testing.T) {
	h := other(t)
	for range 20 {
		returned, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			_ = h.NS().Do(func() error { runtime.Goexit(); return nil })
			returned = true
		}()
		<-ended
		if returned {
			t.Fatal("Do returned")
		}
	}
	allHome(t)
}

// TestDoUnprivileged enters as nobody, with a descriptor from us.
func TestDoUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	const nobody = 65534
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", other(t).NS().Fd()))
	check(t, err)
	defer func() { check(t, file.Close()) }()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{entering + "=1"}
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EINVAL) {
		t.Skip("needs root: in this user namespace there is nobody else")
	}
	if err != nil || !strings.Contains(string(out), "CAP_SYS_ADMIN") {
		t.Errorf("%v: %q does not name CAP_SYS_ADMIN", err, out)
	}
}

func TestList(t *testing.T) {
	running, named, both := other(t), other(t), other(t)
	cmd, inNamed := exec.CommandContext(t.Context(), "sleep", "60"), exec.CommandContext(t.Context(), "sleep", "60")
	check(t, running.Start(cmd))
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	check(t, both.Start(inNamed))
	defer func() {
		_ = inNamed.Process.Kill()
		_ = inNamed.Wait()
	}()
	dir := t.TempDir()
	// A symbolic link stands for the bind mount that ip-netns(8) makes.
	check(t, os.Symlink(fmt.Sprintf("/proc/self/fd/%d", named.NS().Fd()), filepath.Join(dir, "green")))
	check(t, os.Symlink(fmt.Sprintf("/proc/self/fd/%d", both.NS().Fd()), filepath.Join(dir, "blue")))
	check(t, os.WriteFile(filepath.Join(dir, "left-over"), nil, 0o600))

	list, _, err := netns.List("/proc", filepath.Join(dir, "none"), dir)
	check(t, err)
	names := map[uint32]string{}
	for _, ns := range list {
		if names[ns.Inode()] != "" {
			t.Errorf("namespace %d listed twice", ns.Inode())
		}
		names[ns.Inode()] = ns.Name()
		check(t, ns.Close())
	}
	for inode, want := range map[uint32]string{
		own(t):               "current",
		running.NS().Inode(): fmt.Sprintf("pid %d", cmd.Process.Pid),
		named.NS().Inode():   filepath.Join(dir, "green"),
		both.NS().Inode():    filepath.Join(dir, "blue"),
	} {
		if names[inode] != want {
			t.Errorf("namespace %d: %q, want %q", inode, names[inode], want)
		}
	}
}

func TestListHostileProc(t *testing.T) {
	root := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(root, "12", "ns"), 0o700))
	check(t, os.WriteFile(filepath.Join(root, "12", "ns", "net"), []byte("net:[1]"), 0o600))
	check(t, os.MkdirAll(filepath.Join(root, "13"), 0o700)) // ended meanwhile
	check(t, os.WriteFile(filepath.Join(root, "14"), nil, 0o600))
	check(t, os.MkdirAll(filepath.Join(root, "self", "ns"), 0o700))
	list, hidden, err := netns.List(root)
	if err != nil || len(list) != 0 || hidden == 0 {
		t.Errorf("%d namespaces, %d hidden, %v", len(list), hidden, err)
	}
	before := descriptors(t)
	if _, _, err := netns.List(filepath.Join(root, strconv.Itoa(1))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no proc: %v", err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, then %d", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(list)
}

// A name stands for a namespace only in the folder of ip-netns(8).
func TestOpenName(t *testing.T) {
	if _, err := netns.FromName("nosuch-namespace"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/run/netns") {
		t.Errorf("a name that there is not: %v", err)
	}
	home, done := own(t), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which sees another /run, ends with the goroutine
		done <- func() error {
			const name = netns.NamedDir + "/blue"
			for _, step := range []func() error{
				func() error { return unix.Unshare(unix.CLONE_NEWNS) },
				func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
				func() error { return unix.Mount("run", "/run", "tmpfs", 0, "") },
				func() error { return os.Mkdir(netns.NamedDir, 0o755) },
				func() error { return os.WriteFile(name, nil, 0o600) },
				func() error { return unix.Unshare(unix.CLONE_NEWNET) },
				func() error { return unix.Mount("/proc/thread-self/ns/net", name, "", unix.MS_BIND, "") },
			} {
				if err := step(); err != nil {
					return err
				}
			}
			want, err := here()
			if err != nil {
				return err
			}
			n, err := netns.FromName("blue")
			if err != nil {
				return err
			}
			defer func() { _ = n.Close() }()
			if n.Inode() != want || want == home || n.Name() != name {
				t.Errorf("opened %s, inode %d, want %s, %d; home is %d", n.Name(), n.Inode(), name, want, home)
			}
			return nil
		}()
	}()
	check(t, <-done)
}
