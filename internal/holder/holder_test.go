package holder_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"deadpeer/internal/holder"
)

// conn counts how often it is closed.
type conn struct{ closed int }

func (c *conn) Close() error { c.closed++; return nil }

func TestReplaceAndClose(t *testing.T) {
	t.Parallel()
	var h holder.Of[*conn]
	if _, ok := h.Get(); ok {
		t.Error("an empty one has a connection")
	}
	first, second := &conn{}, &conn{}
	dial := func(c *conn) func(context.Context) (*conn, error) {
		return func(context.Context) (*conn, error) { return c, nil }
	}
	if err := h.Replace(t.Context(), dial(first)); err != nil {
		t.Fatal(err)
	}
	if got, ok := h.Get(); !ok || got != first {
		t.Errorf("got %v", got)
	}
	refused := errors.New("refused")
	err := h.Replace(t.Context(), func(context.Context) (*conn, error) {
		if _, ok := h.Get(); ok || first.closed != 1 {
			t.Error("the old one is still there while a new one is made")
		}
		return nil, refused
	})
	if _, ok := h.Get(); ok || !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if err := h.Replace(t.Context(), dial(second)); err != nil {
		t.Fatal(err)
	}
	late := &conn{}
	err = h.Replace(t.Context(), func(context.Context) (*conn, error) { return late, h.Close() })
	if !errors.Is(err, net.ErrClosed) || late.closed != 1 {
		t.Errorf("closed meanwhile: %v, closed %d times", err, late.closed)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Error(err)
	}
	if err := h.Replace(t.Context(), dial(late)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if first.closed != 1 || second.closed != 1 {
		t.Errorf("closed %d and %d times, want once each", first.closed, second.closed)
	}
}

func TestAsk(t *testing.T) {
	t.Parallel()
	var h holder.Of[*conn]
	made := 0
	reconnect := func(ctx context.Context) error {
		return h.Replace(ctx, func(context.Context) (*conn, error) { made++; return &conn{}, nil })
	}
	asked := 0
	failed := errors.New("failed")
	ask := func(broken ...bool) func(*conn) (bool, error) {
		return func(c *conn) (bool, error) {
			if asked++; c.closed > 0 {
				t.Error("asked on a closed connection")
			}
			now := broken[0]
			if broken = broken[1:]; len(broken) > 0 {
				return now, failed
			}
			return now, nil
		}
	}
	if held, err := h.Ask(t.Context(), reconnect, ask(false)); held || err != nil || asked != 0 {
		t.Errorf("empty: %v, %v", held, err)
	}
	if err := reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name        string
		ctx         context.Context
		broken      []bool
		asked, made int
		err         error
	}{
		{"answers", t.Context(), []bool{false}, 1, 0, nil},
		{"fails", t.Context(), []bool{false, false}, 1, 0, failed},
		{"breaks", t.Context(), []bool{true, false}, 2, 1, nil},
		{"breaks again", t.Context(), []bool{true, true, false}, 2, 1, failed},
		{"breaks too late", ended, []bool{true, false}, 1, 0, failed},
	} {
		asked, made = 0, 0
		held, err := h.Ask(test.ctx, reconnect, ask(test.broken...))
		if !held || !errors.Is(err, test.err) || asked != test.asked || made != test.made {
			t.Errorf("%s: %v, %v; asked %d, made %d", test.name, held, err, asked, made)
		}
	}
	refused := errors.New("refused")
	if _, err := h.Ask(t.Context(), func(context.Context) error { return refused }, ask(true, false)); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if held, err := h.Ask(t.Context(), func(context.Context) error { return h.Close() }, ask(true, false)); held || err != nil {
		t.Errorf("closed meanwhile: %v, %v", held, err)
	}
}
