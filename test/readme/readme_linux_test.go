// Package readme holds README.md to the code: its example runs, and the
// commands it lists are those there are.
package readme

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"deadpeer/internal/cli"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExampleIsTheREADMEs(t *testing.T) {
	_, rest, found := strings.Cut(read(t, "../../README.md"), "```go\n")
	block, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatal("README.md has no block of Go")
	}
	if !strings.Contains(read(t, "example_linux_test.go"), block) {
		t.Errorf("the example of README.md is not the one that runs:\n%s", block)
	}
}

func TestCommandsAreTheREADMEs(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := cli.Run(t.Context(), []string{"__complete", ""}, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	names := func(pattern, text string) (list []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			if m[1] != "help" {
				list = append(list, m[1])
			}
		}
		slices.Sort(list)
		return list
	}
	have := names(`(?m)^([a-z]+)\t`, stdout.String())
	_, section, _ := strings.Cut(read(t, "../../README.md"), "## Commands\n")
	section, _, _ = strings.Cut(section, "\n## ")
	told := names("(?m)^\\| `([a-z]+)", section)
	if !slices.Equal(have, told) {
		t.Errorf("commands: README.md tells of %v, there are %v", told, have)
	}
}
