//go:build !linux

package jiffies

import (
	"errors"
	"fmt"
	"time"
)

// HZ is 250: other systems are not asked.
func HZ() int { return defaultHZ }

// Monotonic is 0 for want of that clock.
func Monotonic() time.Duration { return 0 }

// Read returns an error matching errors.ErrUnsupported.
func Read() (Counter, error) {
	return Counter{}, fmt.Errorf("read tick counter: %w", errors.ErrUnsupported)
}
