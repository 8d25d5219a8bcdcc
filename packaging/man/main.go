// Man writes the man pages of deadpeer into a folder:
//
//	go run ./packaging/man DIR
//
// It is a program of its own so that deadpeer does not carry what renders them.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"deadpeer/internal/cli"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	if len(args) != 1 {
		fmt.Fprintln(stderr, "usage: go run ./packaging/man DIR")
		return 2
	}
	if err := write(args[0]); err != nil {
		fmt.Fprintln(stderr, "write man pages:", err)
		return 1
	}
	return 0
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := cli.Command()
	root.InitDefaultVersionFlag()
	root.DisableAutoGenTag = true
	for _, c := range root.Commands() {
		if c.IsAdditionalHelpTopicCommand() { // which gets no page of its own
			root.Long += "\n\n" + c.Long
		}
	}
	verbatim(root)
	named(root)
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "deadpeer", Manual: "System administration"}, dir); err != nil {
		return err
	}
	return switches(dir)
}

// named gives flags the form of --help: what renders the pages puts a default
// where the name of a value belongs, which for a switch is noise.
func named(cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name, usage := pflag.UnquoteUsage(f)
		if !slices.Contains([]string{"", "0", "false", "[]"}, f.DefValue) {
			usage += " (default " + f.DefValue + ")"
		}
		f.DefValue, f.Usage, f.NoOptDefVal, f.Value = name, usage, "", unquoted{f.Value}
	})
	for _, sub := range cmd.Commands() {
		named(sub)
	}
}

// unquoted is a value that is not shown in quotes, as strings are.
type unquoted struct{ pflag.Value }

func (unquoted) Type() string { return "" }

// switches ends the line of a flag without a value after its name.
func switches(dir string) error {
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	for _, page := range pages {
		text, readErr := os.ReadFile(page)
		if readErr == nil {
			readErr = os.WriteFile(page, bytes.ReplaceAll(text, []byte("\\fP=\n"), []byte("\\fP\n")), 0o644)
		}
		err = errors.Join(err, readErr)
	}
	return err
}

// verbatim keeps the lines of tables apart: what renders the pages takes only
// lines for it that are indented by four.
func verbatim(cmd *cobra.Command) {
	lines := strings.Split(cmd.Long, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  ") {
			lines[i] = "    " + line
		}
	}
	cmd.Long = strings.Join(lines, "\n")
	for _, sub := range cmd.Commands() {
		verbatim(sub)
	}
}
