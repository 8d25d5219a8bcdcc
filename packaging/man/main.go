// Man writes the man pages of deadpeer into a folder:
//
//	go run ./packaging/man DIR
//
// It is a program of its own so that deadpeer does not carry what renders them.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

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
	verbatim(root)
	return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "deadpeer", Manual: "System administration"}, dir)
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
