//go:build !linux

package keepalive

import (
	"errors"
	"fmt"
	"runtime"
)

func setFD(int, Policy) error { return unsupported() }

func getFD(int) (Settings, error) { return Settings{}, unsupported() }

func disableFD(int) error { return unsupported() }

func unsupported() error {
	return fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)
}
