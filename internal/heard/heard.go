// Package heard keeps when the peer of a connection last proved to be alive.
// Any OS, no privileges.
package heard

import (
	"sync/atomic"
	"time"
)

// Clock remembers one moment, by the monotonic clock. Make it with New. Safe
// for concurrent use.
type Clock struct {
	base time.Time
	at   atomic.Int64 // since base, nanoseconds; 0 for never
}

// New makes one that has heard nothing.
func New() *Clock { return &Clock{base: time.Now()} }

// Note says that the peer is heard now.
func (c *Clock) Note() { c.at.Store(max(1, int64(time.Since(c.base)))) }

// Ago is how long ago that was, negative for never.
func (c *Clock) Ago() time.Duration {
	at := c.at.Load()
	if at == 0 {
		return -1
	}
	return time.Since(c.base) - time.Duration(at)
}
