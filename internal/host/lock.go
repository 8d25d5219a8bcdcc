package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// lock keeps other deadpeer processes from changing the host meanwhile. The
// system gives it back when the process dies. It waits until ctx ends.
func (h *Host) lock(ctx context.Context) (release func(), err error) {
	path := filepath.Join(h.options.StateDir, "tune.lock")
	if err := prepareState(h.options.StateDir); err != nil {
		return nil, fmt.Errorf("prepare state folder: %w", denied(err))
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state folder: %w", denied(err))
	}
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		locked, err := lockFile(f)
		switch {
		case err != nil:
			_ = f.Close() // nothing was written to it
			return nil, fmt.Errorf("lock state folder: %w", err)
		case locked:
			return func() { _ = f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			_ = f.Close() // nothing was written to it
			return nil, fmt.Errorf("wait for another deadpeer that changes this host: %w", ctx.Err())
		case <-retry.C:
		}
	}
}
