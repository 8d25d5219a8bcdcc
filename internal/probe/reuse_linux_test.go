package probe

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

const (
	slot  = 200 // the descriptor
	flips = 100_000
)

// flip puts one inherited socket after the other under the same descriptor,
// the first one every other time.
func flip(inherited []int) error {
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	inherited = append(inherited, int(null.Fd()))
	for n := range flips {
		fd := inherited[0]
		if n%2 == 0 {
			fd = inherited[n/2%len(inherited)]
		}
		if n%4 == 1 { // at other times it is replaced at one stroke
			_ = unix.Close(slot)
		}
		if err := unix.Dup3(fd, slot, unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
	}
	return nil
}

// A program closes and reopens one descriptor 100,000 times while an old
// socket of that descriptor is being asked. Whatever else the descriptor holds
// at the moment, connections, listeners and files, is never asked and loses
// nothing.
func TestDescriptorReused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asked := w.pair()
	asked.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	var others []*pair
	for range 7 {
		p := w.pair()
		p.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		others = append(others, p)
	}
	before := make([]conn.Sock, len(others))
	options := make([]options, len(others))
	for i, p := range others {
		before[i], options[i] = w.read(p), p.options(t)
	}
	pid, _, ended := start(t, "flip", append([]*pair{asked}, others...)...)
	target := w.target(asked)
	target.Owners[0] = conn.Owner{PID: pid, FD: slot}
	outcomes := map[Refusal]int{}
	for running := true; running; {
		select {
		case <-ended:
			running = false
		default:
			outcomes[w.ask(target)[0].Refusal]++
		}
	}
	if outcomes[NotRefused] == 0 || outcomes[Reused] == 0 {
		t.Errorf("nothing was put to the test: %v", outcomes)
	}
	for r := range outcomes {
		if r != NotRefused && r != Reused && r != OwnerGone {
			t.Errorf("outcome %v", r)
		}
	}
	for i, p := range others {
		now := w.read(p)
		if now.SegsOut != before[i].SegsOut || now.SegsIn != before[i].SegsIn {
			t.Errorf("another socket was asked %d times", now.SegsOut-before[i].SegsOut)
		}
		if o := p.options(t); o != options[i] {
			t.Errorf("options %+v, were %+v", o, options[i])
		}
	}
	if o := asked.options(t); o.reuse != 1 {
		t.Errorf("options %+v", o)
	}
}
