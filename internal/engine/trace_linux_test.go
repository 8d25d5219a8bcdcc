package engine

import (
	"testing"
	"time"

	"deadpeer/keepalive"
)

// A trace that looks at a socket late takes no probe it has seen, or will, for
// one of before.
func TestProbesBeforeTrace(t *testing.T) {
	t.Parallel()
	first := time.Unix(1000, 0)
	at := func(s float64) time.Time { return first.Add(time.Duration(s * float64(time.Second))) }
	for name, tt := range map[string]struct {
		looking, looked time.Time
		counted, want   int
	}{
		"looked before":               {at(-3), at(-2), 2, 2},
		"looked right after":          {at(0.1), at(0.2), 1, 0},
		"looked right after, some":    {at(0.1), at(0.2), 3, 2},
		"looked while it went out":    {at(-0.1), at(0.2), 1, 0},
		"looked two intervals later":  {at(2.5), at(2.6), 3, 0},
		"looked as late, one before":  {at(2.5), at(2.6), 4, 1},
		"looked when it was answered": {at(2.5), at(2.6), 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := &trace{looking: tt.looking, looked: tt.looked}
			s := &tracedSocket{probes: tt.counted}
			s.Known, s.Settings.Policy = true, keepalive.Policy{Idle: time.Minute, Interval: time.Second, Probes: 9}
			if got := tr.before(s, first); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
