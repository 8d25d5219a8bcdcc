package procfd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deadpeer/internal/conn"
)

const id64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseStat(t *testing.T) {
	rest := " S 17 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2\n"
	tests := []struct {
		name, in string
		want     stat
		bad      bool
	}{
		{name: "plain", in: "42 (postgres)" + rest, want: stat{"postgres", 17, 98765}},
		{name: "parentheses, space, newline", in: "42 (a) R 1 (\n)" + rest, want: stat{"a) R 1 (\n", 17, 98765}},
		{name: "empty name", in: "42 ()" + rest, want: stat{"", 17, 98765}},
		{name: "init", in: "1 (init) S 0" + strings.Repeat(" 0", 17) + " 5\n", want: stat{"init", 0, 5}},
		{name: "empty", in: "", bad: true},
		{name: "no name", in: "42 postgres" + rest, bad: true},
		{name: "turned around", in: "42 )(" + rest, bad: true},
		{name: "cut", in: "42 (postgres) S 17 1 1", bad: true},
		{name: "no number", in: "42 (x) S 17" + strings.Repeat(" 0", 17) + " never\n", bad: true},
		{name: "parent too great", in: "42 (x) S 4294967296" + strings.Repeat(" 0", 18), bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseStat([]byte(tt.in))
			if (err != nil) != tt.bad || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestParseCgroup(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"v2", "0::/system.slice/ssh.service\n", "/system.slice/ssh.service"},
		{"v2 root", "0::/\n", "/"},
		{"hybrid", "12:pids:/x\n1:name=systemd:/system.slice/ssh.service\n0::/system.slice/other.service\n", "/system.slice/other.service"},
		{"hybrid, unified at root", "1:name=systemd:/system.slice/ssh.service\n0::/\n", "/system.slice/ssh.service"},
		{"v1", "4:memory:/m\n1:name=systemd:/docker/" + id64 + "\n", "/docker/" + id64},
		{"v1 without systemd", "4:memory:/m\n", ""},
		{"colons in the path", "0::/a:b:c\n", "/a:b:c"},
		{"empty", "", ""},
		{"nonsense", "0:\n:::\n0::relative\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseCgroup([]byte(tt.in)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestUnitAndContainer(t *testing.T) {
	tests := []struct{ path, unit, container string }{
		{"/", "", ""},
		{"", "", ""},
		{"/system.slice/postgresql@16-main.service", "postgresql@16-main.service", ""},
		{"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", ""},
		{`/system.slice/a\x2db.service/sub/evil.service`, `a\x2db.service`, ""},
		{"/system.slice/dbus.socket", "dbus.socket", ""},
		{"/init.scope", "init.scope", ""},
		{"/user.slice/user-1000.slice/session-2.scope", "session-2.scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service", "user@1000.service", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/app-term.scope/x.service", "app-term.scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope", ""},
		{"/system.slice/docker-" + id64 + ".scope", "docker-" + id64 + ".scope", id64},
		{"/system.slice/docker-" + id64 + ".scope/system.slice/nginx.service", "docker-" + id64 + ".scope", id64},
		{"/docker/" + id64, "", id64},
		{"/docker/" + id64 + "/docker/" + strings.Repeat("f", 64), "", strings.Repeat("f", 64)},
		{"/kubepods/burstable/pod1234/" + id64, "", id64},
		{"/kubepods.slice/kubepods-besteffort.slice/cri-containerd-" + id64 + ".scope", "cri-containerd-" + id64 + ".scope", id64},
		{"/kubepods.slice/crio-" + id64 + ".scope/container", "crio-" + id64 + ".scope", id64},
		{"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + id64, "containerd.service", id64},
		{"/machine.slice/libpod-" + id64 + ".scope/container", "libpod-" + id64 + ".scope", id64},
		{"/machine.slice/libpod-conmon-" + id64 + ".scope", "libpod-conmon-" + id64 + ".scope", ""},
		{"/lxc.payload.web1/system.slice/nginx.service", "", "web1"},
		{"/lxc.monitor.web1", "", ""},
		{`/machine.slice/machine-my\x2dbox.scope`, `machine-my\x2dbox.scope`, "my-box"},
		{"/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn@web.service", "web"},
		{"/machine.slice/machine-.scope", "machine-.scope", ""},
		{"/docker/" + strings.Repeat("g", 64), "", ""},
		{"/docker/0123", "", ""},
		{"/system.slice/\x1b[31m.service", "", ""},
		{"/system.slice/.service", "", ""},
		{"/../../x.service", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.path, func(t *testing.T) {
			if unit, container := unitOf(tt.path), containerOf(tt.path); unit != tt.unit || container != tt.container {
				t.Errorf("got unit %q, container %q, want %q, %q", unit, container, tt.unit, tt.container)
			}
		})
	}
}

// fixture writes a procfs of processes and their parents.
func fixture(t *testing.T, parents map[int32]int32) *FS {
	t.Helper()
	root := t.TempDir()
	for pid, ppid := range parents {
		write(t, root, fmt.Sprintf("%d/stat", pid), fmt.Sprintf("%d (p(%d)) S %d%s %d\n", pid, pid, ppid, strings.Repeat(" 0", 17), 100+pid))
		write(t, root, fmt.Sprintf("%d/cgroup", pid), "0::/system.slice/docker-"+id64+".scope\n")
	}
	return New(root)
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestProcessOfFixture(t *testing.T) {
	f := fixture(t, map[int32]int32{42: 7})
	got, err := f.Process(42)
	want := conn.Process{PID: 42, PPID: 7, Comm: "p(42)", Cgroup: "/system.slice/docker-" + id64 + ".scope",
		Unit: "docker-" + id64 + ".scope", Container: id64}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if start, err := f.StartTime(42); err != nil || start != 142 {
		t.Errorf("start time %d, %v", start, err)
	}
	if _, err := f.Process(43); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("process that is not there: %v", err)
	}
	write(t, f.root, "44/stat", strings.Repeat("x", statLimit+1))
	if _, err := f.Process(44); err == nil {
		t.Error("endless stat accepted")
	}
}

func TestAncestorsOfFixture(t *testing.T) {
	f := fixture(t, map[int32]int32{1: 0, 2: 1, 3: 2, 10: 12, 11: 10, 12: 11, 20: 20, 30: 31})
	tests := []struct {
		pid  int32
		want []int32
	}{
		{1, nil},
		{3, []int32{2, 1}},
		{10, []int32{12, 11}}, // a cycle
		{20, nil},             // its own parent
		{30, []int32{31}},     // the parent has gone
	}
	for _, tt := range tests {
		if got, err := f.Ancestors(tt.pid); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("Ancestors(%d) = %v, %v, want %v", tt.pid, got, err, tt.want)
		}
	}
	if _, err := f.Ancestors(99); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a process that is not there: %v", err)
	}
}

func TestProcessReal(t *testing.T) {
	f := New("/proc")
	pid := holder(t, 1)
	p, err := f.Process(pid)
	if err != nil {
		t.Fatal(err)
	}
	if want := hostileName[:min(len(hostileName), 15)]; p.Comm != want || p.PPID != int32(os.Getpid()) {
		t.Errorf("got %+v, want comm %q and parent %d", p, want, os.Getpid())
	}
	if conn.Printable(p.Comm) != `a) R 1 (\x0a\x1b[31m` {
		t.Errorf("printable %q", conn.Printable(p.Comm))
	}
	mine, err1 := f.StartTime(int32(os.Getpid()))
	its, err2 := f.StartTime(pid)
	if err1 != nil || err2 != nil || mine == 0 || its < mine {
		t.Errorf("start times: mine %d, %v; its %d, %v", mine, err1, its, err2)
	}
	if list, err := f.Ancestors(pid); err != nil || len(list) == 0 || list[0] != int32(os.Getpid()) {
		t.Errorf("ancestors %v, %v", list, err)
	}
	if v, ok, err := f.Environ(pid, "PROCFD_TEST_ROLE"); err != nil || !ok || v != "hold 1" {
		t.Errorf("environ %q, %t, %v", v, ok, err)
	}
	if v, ok, err := f.Environ(pid, "PROCFD_TEST"); err != nil || ok {
		t.Errorf("environ of a prefix %q, %t, %v", v, ok, err)
	}
	if id, err := f.BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
}

func TestBootIDOfFixture(t *testing.T) {
	f := fixture(t, nil)
	if _, err := f.BootID(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	write(t, f.root, "sys/kernel/random/boot_id", "nonsense\n")
	if id, err := f.BootID(); err == nil {
		t.Errorf("accepted %q", id)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (a) b) S 17 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2\n"))
	f.Add([]byte("1 ()"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := parseStat(data)
		if err == nil && !strings.Contains(string(data), "("+st.comm+")") {
			t.Fatalf("name %q is not in %q", st.comm, data)
		}
	})
}

func FuzzParseCgroup(f *testing.F) {
	f.Add([]byte("0::/system.slice/docker-" + id64 + ".scope\n"))
	f.Add([]byte("1:name=systemd:/user.slice/user@1.service/a.scope\n0::/\n"))
	f.Add([]byte(`0::/machine.slice/machine-a\x2`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := parseCgroup(data)
		if path != "" && path[0] != '/' {
			t.Fatalf("path %q", path)
		}
		if unit := unitOf(path); unit != "" && conn.Printable(unit) != unit {
			t.Fatalf("unit %q", unit)
		}
		if strings.Contains(containerOf(path), "/") && !strings.Contains(path, `\x2f`) {
			t.Fatalf("container %q", containerOf(path))
		}
	})
}

func FuzzParseSocket(f *testing.F) {
	f.Add([]byte("socket:[123]"))
	f.Add([]byte("socket:[4294967296]"))
	f.Add([]byte("socket:["))
	f.Add([]byte("pipe:[1]"))
	f.Fuzz(func(t *testing.T, link []byte) {
		var n uint32
		inode, ok := parseSocket(link)
		if !ok {
			return
		}
		if _, err := fmt.Sscanf(string(link), "socket:[%d]", &n); err != nil || n != inode {
			t.Fatalf("%q: got %d, want %d, %v", link, inode, n, err)
		}
	})
}

func FuzzNextEntry(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x18\x00\x0a12\x00\x00\x00"))
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for rest := buf; ; {
			name, next := nextEntry(rest)
			if name == nil {
				return
			}
			if len(next) >= len(rest) || name[len(name)-1] != 0 {
				t.Fatalf("entry %q of %q leaves %q", name, rest, next)
			}
			rest = next
		}
	})
}
