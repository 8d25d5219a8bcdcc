//go:build !linux && !freebsd

package keepalive

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

func heardFD(uintptr) (time.Duration, error) {
	return 0, fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)
}
