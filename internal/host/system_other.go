//go:build !linux && !windows && !darwin && !freebsd

package host

import (
	"errors"
	"fmt"
	"runtime"
)

func newSystem(Options) (system, error) {
	return nil, fmt.Errorf("tune keepalive on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
