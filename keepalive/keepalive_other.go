//go:build !linux && !darwin && !dragonfly && !freebsd && !illumos && !netbsd && !openbsd && !solaris && !windows

package keepalive

import (
	"errors"
	"fmt"
	"runtime"
)

func setFD(uintptr, Policy, bool) ([]*PartError, error) { return nil, unsupported() }

func getFD(uintptr) (Settings, error) { return Settings{}, unsupported() }

func restoreFD(uintptr, Settings) error { return unsupported() }

func disableFD(uintptr) error { return unsupported() }

func unsupported() error {
	return fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)
}
