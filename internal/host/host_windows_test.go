package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows/registry"
)

const testKey = `Software\deadpeer test of Tcpip Parameters`

// onRegistry is a host whose registry key is one of our own, with the values
// given.
func onRegistry(t *testing.T, values map[string]uint32) (*Host, registry.Key) {
	t.Helper()
	remove := func() {
		err := registry.DeleteKey(registry.CURRENT_USER, testKey)
		if err != nil && !errors.Is(err, registry.ErrNotExist) {
			t.Error(err)
		}
	}
	remove()
	t.Cleanup(remove)
	k, _, err := registry.CreateKey(registry.CURRENT_USER, testKey, registry.ALL_ACCESS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	for name, v := range values {
		if err := k.SetDWordValue(name, v); err != nil {
			t.Fatal(err)
		}
	}
	h, err := New(Options{StateDir: stateFolder(t), Registry: testKey})
	if err != nil {
		t.Fatal(err)
	}
	return h, k
}

// stateFolder is t.TempDir without os.RemoveAll, which Wine does not have the
// calls for.
func stateFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "deadpeer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
		if err = errors.Join(err, os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// dword reads a value; there is false when there is none.
func dword(t *testing.T, k registry.Key, name string) (v uint64, there bool) {
	t.Helper()
	v, _, err := k.GetIntegerValue(name)
	if err != nil && !errors.Is(err, registry.ErrNotExist) {
		t.Fatal(err)
	}
	return v, err == nil
}

func TestRegistry(t *testing.T) {
	h, k := onRegistry(t, map[string]uint32{"KeepAliveTime": 300_000, "Hostname": 1})
	state, err := h.Show()
	if err != nil {
		t.Fatal(err)
	}
	idle, _ := state.Part(Idle)
	interval, _ := state.Part(Interval)
	if idle.Live != nil || idle.AtBoot() != 300_000 || idle.Persisted.Where() != `HKCU\`+testKey || interval.Persisted != nil || interval.AtBoot() != 1000 {
		t.Errorf("shown %+v, %+v", idle, interval)
	}
	plan, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30, Interval: 10, Probes: 5, Retries2: 8}})
	if err != nil {
		t.Fatal(err)
	}
	if !plan.Reboot || plan.File != nil || len(plan.Lost) != 0 || len(plan.Without) != 1 || plan.Without[0] != Probes {
		t.Errorf("plan %+v", plan)
	}
	for name, want := range map[string]uint64{"KeepAliveTime": 30_000, "KeepAliveInterval": 10_000, "TcpMaxDataRetransmissions": 8} {
		if v, there := dword(t, k, name); !there || v != want {
			t.Errorf("%s is %d, %v, want %d", name, v, there, want)
		}
	}
	// The first originals are kept, and what was not there goes away again.
	if _, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 20}}); err != nil {
		t.Fatal(err)
	}
	u, err := h.Restore(t.Context())
	if err != nil || len(u.Live) != 3 || !u.Reboot {
		t.Errorf("restored %+v, %v", u, err)
	}
	if v, there := dword(t, k, "KeepAliveTime"); v != 300_000 || !there {
		t.Errorf("KeepAliveTime is %d, %v", v, there)
	}
	for _, name := range []string{"KeepAliveInterval", "TcpMaxDataRetransmissions"} {
		if v, there := dword(t, k, name); there {
			t.Errorf("%s is left: %d", name, v)
		}
	}
	if u, err := h.Restore(t.Context()); err != nil || !u.Nothing {
		t.Errorf("restored again: %+v, %v", u, err)
	}
}

func TestRegistryRefused(t *testing.T) {
	h, k := onRegistry(t, nil)
	if err := k.SetStringValue("KeepAliveTime", "300000"); err != nil {
		t.Fatal(err)
	}
	_, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30}})
	if err == nil || !strings.Contains(err.Error(), "not a REG_DWORD") {
		t.Errorf("a string: %v", err)
	}
	_, err = h.Set(t.Context(), Change{Values: map[Part]int64{Interval: 30}, LiveOnly: true})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without a reboot: %v", err)
	}
	if _, err := readLimited(h.journal()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a journal: %v", err)
	}
}

// The key itself need not be there.
func TestRegistryWithoutKey(t *testing.T) {
	h, _ := onRegistry(t, nil)
	if err := registry.DeleteKey(registry.CURRENT_USER, testKey); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Set(t.Context(), Change{Values: map[Part]int64{Idle: 30}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
}
