package imports

import (
	"debug/buildinfo"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// heavy modules are for tests and for the programs of others. They would double
// what every run of deadpeer takes of the memory of a host that may be short
// of it.
var heavy = []string{
	"github.com/gopacket", "github.com/prometheus", "github.com/redis", "google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto",
}

// methodsByName is what calls methods by names that are known only when it
// runs. With it in the program the linker keeps all exported methods of all
// types, which is a third of it.
const methodsByName = "text/template.(*state).evalField"

func TestProgramIsLight(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "deadpeer")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", program, module+"/cmd/deadpeer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Deps) == 0 {
		t.Error("the program names no modules")
	}
	for _, m := range info.Deps {
		for _, h := range heavy {
			if within(m.Path, h) {
				t.Errorf("the program has the module %s", m.Path)
			}
		}
	}
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	methods := 0
	for _, s := range symbols {
		if strings.HasPrefix(s.Name, "deadpeer/internal/cli.(*app).") {
			methods++
		}
		if s.Name == methodsByName {
			t.Errorf("the program has %s", s.Name)
		}
	}
	if methods == 0 {
		t.Error("the program has no names for its functions")
	}
}
