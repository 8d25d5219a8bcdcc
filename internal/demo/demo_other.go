//go:build !linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// ErrForbidden is matched by errors of [Enter] that a privilege would cure.
var ErrForbidden = errors.ErrUnsupported

// Enter needs Linux.
func Enter(context.Context, []string, io.Reader, io.Writer, io.Writer) (code int, entered bool, err error) {
	return 0, false, unsupported()
}

// Run needs Linux.
func Run(context.Context, Options) (Result, error) { return Result{}, unsupported() }

// ServeLocks needs Linux.
func ServeLocks(context.Context, string, io.Reader, io.Writer) error { return unsupported() }

func unsupported() error {
	return fmt.Errorf("run demo: network namespaces need Linux: %w", errors.ErrUnsupported)
}
