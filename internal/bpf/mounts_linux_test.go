package bpf

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNamedNetns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "another"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if name := namedNetns(dir); name != "" {
		t.Errorf("without a name: %q", name)
	}
	want := filepath.Join(dir, "ours") // the main thread may be in one that another test made
	if err := os.Symlink("/proc/thread-self/ns/net", want); err != nil {
		t.Fatal(err)
	}
	if name := namedNetns(dir); name != want {
		t.Errorf("got %q, want %q", name, want)
	}
}
