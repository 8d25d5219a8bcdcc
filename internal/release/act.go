package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"deadpeer/internal/conn"
)

// Reread is the greatest age of what was last read of a socket when it is
// destroyed.
const Reread = 5 * time.Millisecond

// Batch sockets are read and destroyed together over sock_diag: well within
// Reread at a few microseconds each.
const Batch = 16

// rereads is how often a batch is read again because the machine kept us
// waiting between reading and destroying.
const rereads = 20

// Destroyer reads and ends sockets by cookie; sockdiag.Conn is one.
type Destroyer interface {
	Lookup(socks []*conn.Sock, outcome func(i int, err error)) error
	Destroy(socks []*conn.Sock, outcome func(i int, err error)) error
}

// Ender ends the sockets of a network namespace that have received as many
// segments as Item.SegsIn says, and nothing for Item.Silence, each locked from
// the comparison to its end, and reports ErrHeard of the others. It gives back
// those that it could not reach, and all that are Any.
type Ender interface {
	End(ctx context.Context, items []Item, outcome func(i int, err error)) (left []int)
}

// Item is a connection to end.
type Item struct {
	Sock   conn.Sock // identity and addresses
	SegsIn uint32    // segments received before the first unanswered question
	// Since is when the first unanswered question was asked. One that its
	// program has connected anew since then has its cookie still, and may have
	// received as many segments as before (tcp_disconnect). Zero is not looked at.
	Since time.Time
	Any   bool // end it whatever it has heard (asked for by cookie)
}

// Errors that an outcome matches.
var (
	errNoInfo    = errors.New("the kernel does not tell what it has heard: left alone")
	errNoOutcome = errors.New("the kernel did not say what came of it")
	ErrHeard     = errors.New("heard from again: left alone")
	ErrTooSlow   = errors.New("this machine is too busy to act on fresh evidence: left alone")
)

// Act ends the items of one network namespace and reports each one's outcome
// exactly once: nil when it was destroyed. One that has heard anything since
// its first unanswered question is left alone: e compares under the socket's
// lock; with e nil, and for what e cannot reach, d reads the socket again, at
// most Reread before it destroys it.
func Act(ctx context.Context, d Destroyer, e Ender, items []Item, outcome func(i int, err error)) {
	left := make([]int, len(items))
	for i := range left {
		left[i] = i
	}
	if e != nil {
		left = e.End(ctx, items, outcome)
	}
	destroy(ctx, d, pick(items, left), func(k int, err error) { outcome(left[k], err) })
}

// pick gives those of the list that are at the places.
func pick[T any](list []T, places []int) []T {
	picked := make([]T, len(places))
	for k, at := range places {
		picked[k] = list[at]
	}
	return picked
}

// destroy ends the items over d.
func destroy(ctx context.Context, d Destroyer, items []Item, outcome func(i int, err error)) {
	runtime.LockOSThread() // for urgent
	defer runtime.UnlockOSThread()
	for base := 0; base < len(items); base += Batch {
		batch := items[base:min(base+Batch, len(items))]
		if err := ctx.Err(); err != nil {
			for i := range batch {
				outcome(base+i, fmt.Errorf("not tried: %w", err))
			}
			continue
		}
		act(d, batch, func(i int, err error) { outcome(base+i, err) })
	}
}

// Confirm reads one item's socket again and gives the reason to leave it
// alone, or nil: what Act does before it destroys, for those who end the
// connection in another way right after. What it read is then at most half of
// Reread old.
func Confirm(ctx context.Context, d Destroyer, item Item) (err error) {
	for range rereads {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("not tried: %w", err)
		}
		start := time.Now()
		_, fresh, _ := read(d, []Item{item}, []int{0}, func(_ int, why error) { err = why })
		if len(fresh) == 0 {
			return err
		}
		if time.Since(start) <= Reread/2 {
			return nil
		}
	}
	return ErrTooSlow
}

func act(d Destroyer, items []Item, outcome func(i int, err error)) {
	todo := make([]int, len(items))
	for i := range items {
		todo[i] = i
	}
	defer urgent()()
	for range rereads {
		start := time.Now()
		var fresh []*conn.Sock
		var at []int
		todo, fresh, at = read(d, items, todo, outcome)
		if len(fresh) == 0 {
			return
		}
		// The destroy itself takes microseconds: half of the time is kept
		// for it.
		if time.Since(start) > Reread/2 {
			continue
		}
		reported := make([]bool, len(fresh))
		err := d.Destroy(fresh, func(i int, err error) {
			if !reported[i] {
				reported[i] = true
				outcome(at[i], err)
			}
		})
		for i := range fresh {
			if !reported[i] {
				outcome(at[i], cmp.Or(err, errNoOutcome))
			}
		}
		return
	}
	for _, i := range todo {
		outcome(i, ErrTooSlow)
	}
}

// read reads the sockets again and settles those that must be left alone. It
// returns the ones still to be destroyed.
func read(d Destroyer, items []Item, todo []int, outcome func(i int, err error)) (left []int, fresh []*conn.Sock, at []int) {
	socks := make([]*conn.Sock, len(todo))
	settled := make([]error, len(todo))
	for n, i := range todo {
		s := items[i].Sock
		socks[n] = &s
		settled[n] = errors.New("not looked up")
	}
	silences := make([]time.Duration, len(todo))
	for n, i := range todo {
		silences[n] = items[i].Silence()
	}
	if err := d.Lookup(socks, func(n int, err error) { settled[n] = err }); err != nil {
		for n := range settled {
			settled[n] = errors.Join(settled[n], err)
		}
	}
	for n, i := range todo {
		switch {
		case settled[n] != nil:
			outcome(i, settled[n])
		case !items[i].Any && !socks[n].HasInfo:
			outcome(i, errNoInfo)
		case !items[i].Any && (socks[n].SegsIn != items[i].SegsIn || heard(socks[n]) < silences[n]):
			outcome(i, ErrHeard)
		default:
			left, fresh, at = append(left, i), append(fresh, socks[n]), append(at, i)
		}
	}
	return left, fresh, at
}

// Silence is for how long the kernel must say that nothing was heard.
func (i *Item) Silence() time.Duration {
	const behind = 100 * time.Millisecond // what its count of ticks may be
	if i.Since.IsZero() {
		return 0
	}
	return max(0, time.Since(i.Since)-behind)
}

func heard(s *conn.Sock) time.Duration {
	d, _ := s.Heard()
	return d
}
