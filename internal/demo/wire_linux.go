package demo

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"deadpeer/internal/engine"
	"deadpeer/internal/wire"
)

// tracer watches the wire at the lock server.
type tracer struct {
	cancel context.CancelFunc
	done   chan error // of the goroutine that watches

	mu      sync.Mutex
	seen    []wire.Event
	changed chan struct{} // closed at the next one
}

// trace begins to watch the lock server's connections; from their beginning
// on, since what a probe is shows by what went before it.
func (p *play) trace(ctx context.Context) (*tracer, error) {
	req, err := p.request()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &tracer{cancel: cancel, done: make(chan error, 1), changed: make(chan struct{})}
	started := make(chan struct{})
	watch := engine.TraceRequest{Netns: req.Netns, Filter: req.Filter, Started: func() { close(started) }}
	go func() {
		_, err := p.engine.Trace(ctx, watch, func(e *engine.Traced) error {
			t.add(e.Event)
			return nil
		})
		t.done <- err
	}()
	select {
	case <-started:
		return t, nil
	case err := <-t.done:
		cancel()
		return nil, fmt.Errorf("trace: %w", err)
	}
}

func (t *tracer) add(e *wire.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = append(t.seen, *e)
	close(t.changed)
	t.changed = make(chan struct{})
}

// sights waits until n events of that kind, and of the phantom, were seen, and
// gives what was seen of it and of the client that came back since the last
// time.
func (p *play) sights(ctx context.Context, kind wire.Kind, n int) ([]Sight, error) {
	t := p.tracer
	if t == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	for {
		t.mu.Lock()
		seen, changed := t.seen, t.changed
		t.mu.Unlock()
		have := 0
		for _, e := range seen {
			if e.Kind == kind && e.Peer == p.result.Phantom {
				have++
			}
		}
		if have >= n {
			t.mu.Lock()
			t.seen = t.seen[len(seen):]
			t.mu.Unlock()
			return p.selected(seen), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("trace: %d of %d were seen, %s: %w", have, n, kind, ctx.Err())
		}
	}
}

// selected are the sights that the story tells of.
func (p *play) selected(events []wire.Event) (list []Sight) {
	for _, e := range events {
		if e.Peer != p.result.Phantom && e.Peer != p.result.Back {
			continue
		}
		s := Sight{At: e.Time.Sub(p.cutAt), Peer: e.Peer, Kind: e.Kind, N: e.N, RTT: e.RTT}
		switch e.Kind {
		case wire.Answer, wire.Unanswered:
			s.At = e.Sent.Sub(p.cutAt)
		case wire.Probe: // told with what became of it
			continue
		}
		if s.At >= 0 {
			list = append(list, s)
		}
	}
	slices.SortStableFunc(list, func(a, b Sight) int { return cmp.Compare(a.At, b.At) })
	return list
}

// stop ends the watching; a nil tracer has none.
func (t *tracer) stop() error {
	if t == nil {
		return nil
	}
	t.cancel()
	if err := <-t.done; err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}
