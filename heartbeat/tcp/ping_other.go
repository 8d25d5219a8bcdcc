//go:build !linux

package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
)

func ping(context.Context, *net.TCPConn) error {
	return fmt.Errorf("have the kernel probe a connection: %w on %s", errors.ErrUnsupported, runtime.GOOS)
}
