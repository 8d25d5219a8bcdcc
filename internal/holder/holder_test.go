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
