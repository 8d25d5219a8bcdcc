package engine

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// defaultRuntimeDir is where the journal and the lock of asking live:
// /run/deadpeer for root, else below XDG_RUNTIME_DIR or the folder for
// temporary files.
func defaultRuntimeDir() string {
	if os.Geteuid() == 0 && unix.Access("/run", unix.W_OK) == nil { // not root of a user namespace only
		return "/run/deadpeer"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "deadpeer")
	}
	return filepath.Join(os.TempDir(), "deadpeer-"+strconv.Itoa(os.Geteuid()))
}
