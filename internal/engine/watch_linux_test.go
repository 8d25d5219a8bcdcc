package engine

import (
	"testing"
	"time"
)

// Whoever asks after a standstill learns of it, be it before the watch itself
// has run, and learns of it once.
func TestWatch(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name   string
		last   time.Time
		asleep time.Duration
		want   uint32
	}{
		{"a moment ago", now, suspended(), 0},
		{"kept waiting", now.Add(-watchEvery - gapLimit - time.Millisecond), suspended(), 1},
		{"suspended", now, suspended() - gapLimit - 100*time.Millisecond, 1},
		{"both at once", now.Add(-time.Hour), suspended() - time.Hour, 1},
	} {
		w := &watch{last: tt.last, asleep: tt.asleep}
		if n := w.gaps(); n != tt.want {
			t.Errorf("%s: %d standstills, want %d", tt.name, n, tt.want)
		}
		if n := w.gaps(); n != tt.want {
			t.Errorf("%s: then %d", tt.name, n)
		}
	}
	w := newWatch()
	w.mu.Lock()
	w.last = w.last.Add(-time.Second)
	w.mu.Unlock()
	wait(t, "standstill noticed", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.count == 1
	})
	w.close()
}
