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
	root.DisableAutoGenTag = true
	return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "deadpeer", Manual: "System administration"}, dir)
}
