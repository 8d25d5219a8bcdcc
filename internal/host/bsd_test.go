//go:build unix

package host

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// fakeBSD is FreeBSD, or macOS, with sysctls in a map.
func fakeBSD(t *testing.T, macOS bool) (*Host, map[string]uint32) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	values := map[string]uint32{}
	b := &bsd{
		root: dir, macOS: macOS,
		read: func(name string) (uint32, error) {
			v, ok := values[name]
			if !ok {
				return 0, fs.ErrNotExist
			}
			return v, nil
		},
		write: func(name, value string) error {
			v, err := strconv.ParseUint(value, 10, 32)
			values[name] = uint32(v)
			return err
		},
		isRoot: func() bool { return true },
		booted: func() (string, error) { return "one", nil },
	}
	for _, p := range b.parameters() {
		values[p.Name] = uint32(p.Default)
	}
	return &Host{Options{Root: dir, StateDir: filepath.Join(dir, "state")}, b}, values
}

func TestFreeBSD(t *testing.T) {
	h, values := fakeBSD(t, false)
	conf := filepath.Join(h.options.Root, sysctlConf)
	const theirs = "# mine\nkern.maxfiles=100000\nnet.inet.tcp.keepidle=60000 # a minute\n"
	if err := os.WriteFile(conf, []byte(theirs), 0o640); err != nil {
		t.Fatal(err)
	}
	before := maps.Clone(values)
	state, err := h.Show()
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := state.Part(Idle); *s.Live != 7_200_000 || s.Persisted == nil || s.Persisted.Value != 60_000 || s.Persisted.Line != 3 {
		t.Errorf("shown %+v", s)
	}
	plan, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30, Interval: 10, Probes: 5, Retries2: 8}})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Lost) != 0 || len(plan.Without) != 1 || plan.Without[0] != Retries2 {
		t.Errorf("plan %+v", plan)
	}
	if values["net.inet.tcp.keepidle"] != 30_000 || values["net.inet.tcp.keepintvl"] != 10_000 || values["net.inet.tcp.keepcnt"] != 5 {
		t.Errorf("set %v", values)
	}
	b, err := os.ReadFile(conf)
	if want := "# mine\nkern.maxfiles=100000\nnet.inet.tcp.keepidle = 30000\nnet.inet.tcp.keepintvl = 10000\nnet.inet.tcp.keepcnt = 5\n"; err != nil || string(b) != want {
		t.Errorf("file %q, %v, want %q", b, err, want)
	}
	if _, err := h.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(conf); err != nil || string(b) != theirs || !maps.Equal(values, before) {
		t.Errorf("restored: file %q, %v, values %v", b, err, values)
	}
}

// What rc.d/sysctl reads last wins over what is set.
func TestFreeBSDLocal(t *testing.T) {
	h, _ := fakeBSD(t, false)
	if err := os.WriteFile(filepath.Join(h.options.Root, "etc/sysctl.conf.local"), []byte("\nnet.inet.tcp.keepidle=600000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	plan, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30, Interval: 10}})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Lost) != 1 || plan.Lost[0].Winner != (Persisted{600_000, "/etc/sysctl.conf.local", 2}) {
		t.Errorf("lost %+v", plan.Lost)
	}
}

func TestMacOS(t *testing.T) {
	h, values := fakeBSD(t, true)
	plan, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30}})
	if err != nil {
		t.Fatal(err)
	}
	if plan.File != nil || len(plan.Lost) != 1 || !strings.Contains(plan.Lost[0].String(), "launchd") || values["net.inet.tcp.keepidle"] != 30_000 {
		t.Errorf("plan %+v, values %v", plan, values)
	}
	if _, err := h.Restore(t.Context()); err != nil || values["net.inet.tcp.keepidle"] != 7_200_000 {
		t.Errorf("restored %v, %v", values, err)
	}
}

func TestBSDRefused(t *testing.T) {
	h, values := fakeBSD(t, false)
	before := maps.Clone(values)
	b := h.sys.(*bsd)
	b.isRoot = func() bool { return false }
	if _, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30}}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("not root: %v", err)
	}
	b.isRoot = func() bool { return true }
	write := b.write
	b.write = func(name, value string) error {
		if name == "net.inet.tcp.keepcnt" {
			return errors.New("refused")
		}
		return write(name, value)
	}
	if _, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30, Interval: 10, Probes: 5}}); err == nil || !strings.Contains(err.Error(), "everything was put back") {
		t.Errorf("fails midway: %v", err)
	}
	if _, err := os.Stat(filepath.Join(h.options.Root, sysctlConf)); !maps.Equal(values, before) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v, file %v", values, err)
	}
}
