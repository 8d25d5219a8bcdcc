package cli

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"deadpeer/internal/journal"
)

// What an interruption hides is said all the same.
func TestBesides(t *testing.T) {
	t.Parallel()
	left := errors.New("left changed")
	cancelled := fmt.Errorf("list sockets: %w", context.Canceled)
	held := fmt.Errorf("lock: %w", &journal.HeldError{PID: 12, Err: context.Canceled})
	for _, tt := range []struct {
		err  error
		want string
	}{
		{context.Canceled, ""},
		{cancelled, ""},
		{errors.Join(cancelled, context.Canceled), ""},
		{left, "left changed"},
		{fmt.Errorf("ask: %w", errors.Join(cancelled, fmt.Errorf("journal: %w", left))), "journal: left changed"},
		{held, "lock: held by process 12: context canceled"},
	} {
		got := ""
		if err := besides(tt.err, context.Canceled); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}
