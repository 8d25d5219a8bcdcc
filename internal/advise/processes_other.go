//go:build !linux

package advise

import (
	"errors"
	"fmt"
	"runtime"
)

// processes knows of none here: connections are listed on Linux only.
type processes struct{}

func newProcesses(Options) *processes { return &processes{} }

func (*processes) comm(int32) string { return "" }

func (*processes) first(pid int32, _ func(string) bool) int32 { return pid }

func (*processes) place(int32) (place, error) {
	return place{}, fmt.Errorf("read configuration on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (*processes) isGo(int32) bool { return false }
