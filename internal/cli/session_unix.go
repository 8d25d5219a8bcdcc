//go:build unix

package cli

import "syscall"

// newSession keeps signals of our terminal from the process.
func newSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
