package jiffies

import (
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"
)

// The counter holds for as long as the host runs: two readings agree, and
// what is read later is what it says.
func TestRead(t *testing.T) {
	t.Parallel()
	c, err := Read()
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	before := c.At(Monotonic()).Jiffies
	now, ticks, err := read()
	if err != nil {
		t.Fatal(err)
	}
	after := c.At(Monotonic()).Jiffies
	if said := c.At(now).Jiffies; uint64(ticks)+1 < before || uint64(ticks) > after+1 || said < before || said > after {
		t.Errorf("%d ticks, said %d, want %d to %d", ticks, said, before, after)
	}
}

func TestHZ(t *testing.T) {
	t.Parallel()
	if hz := HZ(); hz < 24 || hz > 1200 {
		t.Errorf("HZ %d", hz)
	}
}
