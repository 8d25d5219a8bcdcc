//go:build !linux

package advise

import (
	"io/fs"
	"os"
)

func newTree(root string) fs.FS { return os.DirFS(root) }
