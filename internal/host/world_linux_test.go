package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
	"deadpeer/internal/testnet"
)

// roleVariable makes the test binary another process, see role.
const roleVariable = "DEADPEER_HOST_TEST_ROLE"

func TestMain(m *testing.M) {
	if text := os.Getenv(roleVariable); text != "" {
		var r role
		err := json.Unmarshal([]byte(text), &r)
		if err == nil {
			err = r.run()
		}
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(testnet.Main(m))
}

// role is what another process does.
type role struct {
	Do      string // set, restore, readers, read-only
	Root    string
	State   string
	Netns   string
	Values  map[Part]int64
	KillAt  Step
	KillNth int
	Mount   string // read-only
}

func (r role) run() error {
	ctx := context.Background()
	switch r.Do {
	case "readers":
		return runReaders()
	case "set-read-only":
		if err := errors.Join(unix.Mount(r.Mount, r.Mount, "", unix.MS_BIND, ""),
			unix.Mount("", r.Mount, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
			return err
		}
	}
	ns, err := netns.FromPath(r.Netns)
	if err != nil {
		return err
	}
	do := ns.Do
	if r.Do == "set-as-nobody" {
		do = func(f func() error) error { return ns.Do(func() error { return asNobody(f) }) }
	}
	nth := 0
	h, err := New(Options{
		Root: r.Root, StateDir: r.State, Netns: &Namespace{Inode: ns.Inode(), Do: do, Boot: true},
		Step: func(s Step) {
			if s != r.KillAt {
				return
			}
			if nth++; nth > r.KillNth {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		},
	})
	if err != nil {
		return err
	}
	if r.Do == "restore" {
		_, err = h.Restore(ctx)
	} else {
		_, err = h.Set(ctx, Change{Values: r.Values})
	}
	return err
}

// asNobody runs f on a thread that has become another user.
func asNobody(f func() error) error {
	const nobody = 65534
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, 0); errno != 0 {
		return fmt.Errorf("no such user: %w", errno)
	}
	defer unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
	return f()
}

// process is the test binary in a role. It is killed unless it ends.
func process(t *testing.T, r role) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(r)
	ok(t, err)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+string(b))
	return cmd
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a host: a namespace with sysctls of its own, a root folder with
// files, and a state folder.
type world struct {
	t     *testing.T
	ns    *netns.NS
	root  string
	state string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	n, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, n.Close()) })
	machine, err := n.Host("machine")
	ok(t, err)
	dir := t.TempDir()
	w := &world{t: t, ns: machine.NS(), root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	ok(t, os.MkdirAll(filepath.Join(w.root, "etc/sysctl.d"), 0o755))
	ok(t, os.MkdirAll(filepath.Join(w.root, "run/systemd/system"), 0o755))
	return w
}

func (w *world) nsPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.ns.Fd()) }

func (w *world) role(do string, values map[Part]int64) role {
	return role{Do: do, Root: w.root, State: w.state, Netns: w.nsPath(), Values: values}
}

// host is a fresh Host of the world, as a new process would have.
func (w *world) host(change ...func(*Options)) *Host {
	w.t.Helper()
	o := Options{Root: w.root, StateDir: w.state, Netns: &Namespace{Inode: w.ns.Inode(), Do: w.ns.Do, Boot: true}}
	for _, c := range change {
		c(&o)
	}
	h, err := New(o)
	ok(w.t, err)
	return h
}

func (w *world) set(values map[Part]int64) Plan {
	w.t.Helper()
	p, err := w.host().Set(w.t.Context(), Change{Values: values})
	ok(w.t, err)
	return p
}

func (w *world) restore() Undone {
	w.t.Helper()
	u, err := w.host().Restore(w.t.Context())
	ok(w.t, err)
	return u
}

func (w *world) write(path, content string) {
	w.t.Helper()
	full := filepath.Join(w.root, path)
	ok(w.t, os.MkdirAll(filepath.Dir(full), 0o755))
	switch target, link := strings.CutPrefix(content, "-> "); {
	case link:
		ok(w.t, os.Symlink(target, full))
	case content == "folder":
		ok(w.t, os.Mkdir(full, 0o755))
	default:
		ok(w.t, os.WriteFile(full, []byte(content), 0o644))
	}
}

func (w *world) sysctl(name string) string {
	w.t.Helper()
	v, _, err := w.host().sys.get(name)
	ok(w.t, err)
	return v
}

func (w *world) setSysctl(name, value string) {
	w.t.Helper()
	ok(w.t, w.host().sys.set(name, value))
}

// picture is all that a change could touch: every sysctl there is a parameter
// for, every file below the root with its mode and content.
func (w *world) picture() map[string]string {
	w.t.Helper()
	m := map[string]string{}
	for _, p := range linuxParameters() {
		m[p.Name] = w.sysctl(p.Name)
	}
	ok(w.t, filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		m[path] = info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			uid, gid := owner(info)
			m[path] += fmt.Sprintf(" %d %d %q", uid, gid, b)
		}
		return nil
	}))
	return m
}

// as compares the world with a picture of before.
func (w *world) as(before map[string]string, when string) {
	w.t.Helper()
	now := w.picture()
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if _, there := before[k]; !there {
			w.t.Errorf("%s: %s is left: %s", when, k, now[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if now[k] != before[k] {
			w.t.Errorf("%s: %s is %s, was %s", when, k, now[k], before[k])
		}
	}
}

// noJournal makes sure that nothing is remembered.
func (w *world) noJournal(when string) {
	w.t.Helper()
	entries, err := os.ReadDir(w.state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "tune.lock" && e.Name() != "host.json.new" {
			w.t.Errorf("%s: %s is left in the state folder", when, e.Name())
		}
	}
}

// runReaders takes cases from stdin, a line of JSON each, and tells what both
// programs make of them on the real kernel: a line with two values. It is in
// mount and network namespaces of its own.
func runReaders() error {
	for _, dir := range []string{"/etc", "/usr/lib/sysctl.d"} {
		if err := unix.Mount("test", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount on %s: %w", dir, err)
		}
	}
	if err := os.Mkdir("/etc/sysctl.d", 0o755); err != nil {
		return err
	}
	const proc = "/proc/sys/net/ipv4/tcp_keepalive_time"
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var files map[string]string
		if err := json.Unmarshal(lines.Bytes(), &files); err != nil {
			return err
		}
		if err := layOut(files); err != nil {
			return err
		}
		var got [2]string
		for i, program := range [][]string{{"/lib/systemd/systemd-sysctl"}, {"/sbin/sysctl", "--system"}} {
			if err := os.WriteFile(proc, []byte("7200"), 0); err != nil {
				return err
			}
			// Its exit code tells of lines it did not like, which is the point.
			if err := exec.Command(program[0], program[1:]...).Run(); err != nil && errors.Is(err, exec.ErrNotFound) {
				return err
			}
			b, err := os.ReadFile(proc)
			if err != nil {
				return err
			}
			got[i] = strings.TrimSpace(string(b))
		}
		fmt.Println(got[0], got[1])
	}
	return lines.Err()
}

// layOut makes exactly these files.
func layOut(files map[string]string) error {
	for _, dir := range []string{"/etc/sysctl.d", "/usr/lib/sysctl.d"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(sysctlConf, nil, 0o644); err != nil {
		return err
	}
	for path, content := range files {
		var err error
		switch target, link := strings.CutPrefix(content, "-> "); {
		case link:
			err = os.Symlink(target, path)
		case content == "folder":
			err = os.Mkdir(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
