//go:build unix

package session

import (
	"fmt"
	"os"
	"syscall"
)

// openSecret does not wait for the writer of a FIFO.
func openSecret(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// private refuses what group or others may touch.
func private(st os.FileInfo) error {
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return fmt.Errorf("mode %#o lets others at its passwords; chmod 600 it", m)
	}
	return nil
}
