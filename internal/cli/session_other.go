//go:build !unix

package cli

import "syscall"

func newSession() *syscall.SysProcAttr { return nil }
