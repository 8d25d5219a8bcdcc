package heartbeat_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A program that imports heartbeat alone has none of the adapters' modules.
func TestProgramHasNoForeignModules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "main")
	text := "package main\n\nimport \"deadpeer/heartbeat\"\n\nfunc main() { _ = heartbeat.New(heartbeat.Options{}) }\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	own := false
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "dep" && fields[0] != "mod" {
			continue
		}
		own = own || fields[1] == "deadpeer"
		if fields[1] != "deadpeer" && fields[1] != "golang.org/x/sys" {
			t.Errorf("module %s", fields[1])
		}
	}
	if !own {
		t.Errorf("modules of the program are not listed:\n%s", out)
	}
}
