package release

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/verdict"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	dead := Candidate{Verdict: conn.Dead, Why: verdict.WhySilent, Silence: time.Minute}
	with := func(change func(*Candidate)) Candidate {
		c := dead
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name  string
		c     Candidate
		rules verdict.Rules
		why   string // "" when it may be ended
	}{
		{"dead and silent for a minute", dead, verdict.Rules{}, ""},
		{"a moment less", with(func(c *Candidate) { c.Silence -= time.Millisecond }), verdict.Rules{}, "release needs 60 s"},
		{"silence as told", with(func(c *Candidate) { c.Silence = 3 * time.Second }), verdict.Rules{Silence: 3 * time.Second}, ""},
		{"no evidence of silence", with(func(c *Candidate) { c.Silence = 0 }), verdict.Rules{Silence: time.Second}, "release needs"},
		{"protected", with(func(c *Candidate) { c.Protected = "kubelet" }), verdict.Rules{}, "protected: kubelet"},
		{"protected but named", with(func(c *Candidate) { c.Protected, c.Named = "kubelet", true }), verdict.Rules{}, ""},
		{"held", with(func(c *Candidate) { c.Held = "no carrier" }), verdict.Rules{}, "held: no carrier"},
		{"held and named", with(func(c *Candidate) { c.Held, c.Named = "no carrier", true }), verdict.Rules{}, "held: no carrier"},
		{"reset", with(func(c *Candidate) { c.Why = verdict.WhyReset }), verdict.Rules{}, "it has ended: reset by the peer"},
		{"given up", with(func(c *Candidate) { c.Why = verdict.WhyGaveUp }), verdict.Rules{}, "it has ended: the kernel gave it up"},
		{"even alive, but not named", with(func(c *Candidate) { c.Verdict, c.EvenAlive = conn.Alive, true }), verdict.Rules{}, "its verdict is alive"},
		{"even alive and named", with(func(c *Candidate) { c.Verdict, c.EvenAlive, c.Named = conn.Alive, true, true }), verdict.Rules{}, ""},
		{"even alive and protected", with(func(c *Candidate) { c.EvenAlive, c.Protected = true, "kubelet" }), verdict.Rules{}, "protected: kubelet"},
		{"even alive, named and protected", with(func(c *Candidate) { c.EvenAlive, c.Named, c.Protected = true, true, "kubelet" }), verdict.Rules{}, ""},
		{"the zero candidate", Candidate{}, verdict.Rules{}, "its verdict is unknown"},
	} {
		allowed, why := Decide(tt.c, tt.rules)
		if allowed != (tt.why == "") || !strings.Contains(why, tt.why) || allowed && why != "" {
			t.Errorf("%s: %v, %q", tt.name, allowed, why)
		}
	}
	for _, v := range conn.Verdicts() {
		c := dead
		c.Verdict = v
		if allowed, why := Decide(c, verdict.Rules{}); allowed != (v == conn.Dead) {
			t.Errorf("%s: %v, %q", v, allowed, why)
		}
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		p    PathState
		held bool
	}{
		{PathState{}, false},
		{PathState{Asked: 9, Dead: 9}, false},
		{PathState{Asked: 10, Dead: 6}, false}, // 60 % exactly
		{PathState{Asked: 10, Dead: 7}, true},
		{PathState{Asked: 100, Dead: 60}, false},
		{PathState{Asked: 100, Dead: 61}, true},
		{PathState{Asked: 15, Dead: 9}, false},
		{PathState{Asked: 1 << 20, Dead: 1 << 20}, true},
		{PathState{Gone: "eth0 has no carrier"}, true},
		{PathState{Gone: "eth0 has no carrier", Asked: 1}, true},
	} {
		tt.p.Name = "eth7"
		hold := tt.p.Hold()
		if (hold != "") != tt.held {
			t.Errorf("%+v: %q", tt.p, hold)
		}
		switch {
		case tt.p.Gone != "" && hold != tt.p.Gone:
			t.Errorf("%+v: %q", tt.p, hold)
		case tt.held && tt.p.Gone == "" && !strings.Contains(hold, fmt.Sprintf("%d of %d peer addresses over eth7", tt.p.Dead, tt.p.Asked)):
			t.Errorf("%+v: %q", tt.p, hold)
		}
	}
}

// kernel is a Destroyer. Its sockets are known by cookie.
type kernel struct {
	segsIn    map[uint64]uint32 // what a look-up finds; none: gone
	noInfo    map[uint64]bool
	silent    map[uint64]bool // says nothing of this one
	slow      func(lookup int) time.Duration
	destroys  func(cookie uint64) error
	lookupErr error
	err       error // of Destroy as a whole
	twice     bool  // reports every outcome twice
	lookups   int
	destroyed []uint64
}

var errGone = errors.New("gone")

func (k *kernel) Lookup(socks []*conn.Sock, outcome func(int, error)) error {
	if k.slow != nil {
		time.Sleep(k.slow(k.lookups))
	}
	k.lookups++
	for i, s := range socks {
		segs, found := k.segsIn[s.Cookie]
		switch {
		case k.silent[s.Cookie]:
		case !found:
			outcome(i, errGone)
		default:
			s.SegsIn, s.HasInfo = segs, !k.noInfo[s.Cookie]
			outcome(i, nil)
		}
	}
	return k.lookupErr
}

func (k *kernel) Destroy(socks []*conn.Sock, outcome func(int, error)) error {
	for i, s := range socks {
		k.destroyed = append(k.destroyed, s.Cookie)
		var err error
		if k.destroys != nil {
			err = k.destroys(s.Cookie)
		}
		if k.silent[s.Cookie+1000] {
			continue
		}
		outcome(i, err)
		if k.twice {
			outcome(i, errors.New("again"))
		}
	}
	return k.err
}

func item(cookie uint64, segsIn uint32) Item {
	return Item{Sock: conn.Sock{Cookie: cookie}, SegsIn: segsIn}
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	k := &kernel{segsIn: map[uint64]uint32{1: 10, 2: 11}}
	if err := Confirm(t.Context(), k, item(1, 10)); err != nil {
		t.Errorf("silent: %v", err)
	}
	if err := Confirm(t.Context(), k, item(2, 10)); !errors.Is(err, ErrHeard) {
		t.Errorf("heard: %v", err)
	}
	if err := Confirm(t.Context(), k, Item{Sock: conn.Sock{Cookie: 2}, Any: true}); err != nil {
		t.Errorf("heard, and named: %v", err)
	}
	if err := Confirm(t.Context(), k, item(3, 10)); !errors.Is(err, errGone) {
		t.Errorf("gone: %v", err)
	}
	k.slow = func(int) time.Duration { return Reread }
	if err := Confirm(t.Context(), k, item(1, 10)); !errors.Is(err, ErrTooSlow) {
		t.Errorf("slow: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Confirm(ctx, k, item(1, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if len(k.destroyed) != 0 {
		t.Errorf("it destroyed %v", k.destroyed)
	}
}

// run acts and makes sure that every item has exactly one outcome.
func run(ctx context.Context, t *testing.T, k *kernel, items []Item) []error {
	t.Helper()
	outcomes := make([][]error, len(items))
	Act(ctx, k, nil, items, func(i int, err error) { outcomes[i] = append(outcomes[i], err) })
	list := make([]error, len(items))
	for i, o := range outcomes {
		if len(o) != 1 {
			t.Fatalf("item %d: %d outcomes: %v", i, len(o), o)
		}
		list[i] = o[0]
	}
	return list
}

func TestAct(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	k := &kernel{
		segsIn:   map[uint64]uint32{1: 10, 2: 11, 4: 10, 5: 10, 6: 99, 7: 10, 8: 0, 9: 10},
		noInfo:   map[uint64]bool{5: true},
		silent:   map[uint64]bool{7: true, 1009: true},
		destroys: func(c uint64) error { return map[uint64]error{4: refused}[c] },
	}
	anyway := item(6, 10)
	anyway.Any = true
	wrapped := item(8, ^uint32(0)) // the count has gone once around
	got := run(t.Context(), t, k, []Item{item(1, 10), item(2, 10), item(3, 10), item(4, 10), item(5, 10), anyway, item(7, 10), wrapped, item(9, 10)})
	for i, want := range []error{nil, ErrHeard, errGone, refused, errNoInfo, nil, nil, ErrHeard, errNoOutcome} {
		switch {
		case i == 6: // nothing was said of it: whatever the outcome, it is none of success
			if got[i] == nil {
				t.Error("success although it was not looked up")
			}
		case !errors.Is(got[i], want):
			t.Errorf("item %d: %v, want %v", i, got[i], want)
		}
	}
	if fmt.Sprint(k.destroyed) != "[1 4 6 9]" {
		t.Errorf("destroyed %v", k.destroyed)
	}
}

func TestActManyAndTwice(t *testing.T) {
	t.Parallel()
	k := &kernel{segsIn: map[uint64]uint32{}, twice: true}
	var items []Item
	for c := range uint64(5*Batch + 3) {
		k.segsIn[c+1] = uint32(c % 2)
		items = append(items, item(c+1, 0))
	}
	for i, err := range run(t.Context(), t, k, items) {
		if (err == nil) != (i%2 == 0) {
			t.Errorf("item %d: %v", i, err)
		}
	}
}

// While the machine is slow nothing is destroyed; once it is not, the sockets
// are read again first.
func TestActSlow(t *testing.T) {
	t.Parallel()
	k := &kernel{segsIn: map[uint64]uint32{1: 10, 2: 10}, slow: func(int) time.Duration { return Reread }}
	for i, err := range run(t.Context(), t, k, []Item{item(1, 10), item(2, 10)}) {
		if !errors.Is(err, ErrTooSlow) {
			t.Errorf("item %d: %v", i, err)
		}
	}
	if len(k.destroyed) != 0 || k.lookups != rereads {
		t.Errorf("%d look-ups, destroyed %v", k.lookups, k.destroyed)
	}

	k = &kernel{segsIn: map[uint64]uint32{1: 10, 2: 10}}
	k.slow = func(n int) time.Duration {
		if n == 1 {
			k.segsIn[2]++ // heard while we were kept waiting
		}
		if n < 2 {
			return Reread
		}
		return 0
	}
	got := run(t.Context(), t, k, []Item{item(1, 10), item(2, 10)})
	if !errors.Is(got[1], ErrHeard) || got[0] != nil && !errors.Is(got[0], ErrTooSlow) {
		t.Errorf("%v", got)
	}
}

func TestActErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	items := []Item{item(1, 10), item(2, 10)}
	segs := map[uint64]uint32{1: 10, 2: 10}
	k := &kernel{segsIn: segs, lookupErr: broken}
	for i, err := range run(t.Context(), t, k, items) {
		if !errors.Is(err, broken) || len(k.destroyed) > 0 {
			t.Errorf("item %d: %v, destroyed %v", i, err, k.destroyed)
		}
	}
	k = &kernel{segsIn: segs, err: broken, silent: map[uint64]bool{1002: true}}
	if got := run(t.Context(), t, k, items); got[0] != nil || !errors.Is(got[1], broken) {
		t.Errorf("%v", got)
	}
}

func TestActCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	k := &kernel{segsIn: map[uint64]uint32{}}
	var items []Item
	for c := range uint64(3 * Batch) {
		k.segsIn[c+1] = 10
		items = append(items, item(c+1, 10))
	}
	k.destroys = func(c uint64) error {
		if c == Batch+1 { // in the middle of the second batch, which is ended
			cancel()
		}
		return nil
	}
	for i, err := range run(ctx, t, k, items) {
		if cancelled := i >= 2*Batch; errors.Is(err, context.Canceled) != cancelled || !cancelled && err != nil {
			t.Errorf("item %d: %v", i, err)
		}
	}
	if len(k.destroyed) != 2*Batch {
		t.Errorf("%d destroyed", len(k.destroyed))
	}
	if got := run(ctx, t, k, nil); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
