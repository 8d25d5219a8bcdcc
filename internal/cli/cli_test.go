package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
)

// Interrupted is what ends a command, and no reason to keep quiet about what
// else went wrong.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	lost := fmt.Errorf("put back: %w", os.ErrPermission)
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"nothing else":   {fmt.Errorf("check: %w", context.Canceled), "deadpeer: interrupted; everything was put back\n"},
		"several":        {errors.Join(context.Canceled, &exit{exitPartly, context.Canceled}), "deadpeer: interrupted; everything was put back\n"},
		"only a code":    {&exit{exitDead, nil}, "deadpeer: interrupted; everything was put back\n"},
		"something else": {lost, "deadpeer: put back: permission denied\ndeadpeer: interrupted\n"},
		"a lock":         {fmt.Errorf("lock: %w", &journal.HeldError{PID: 12, Err: context.Canceled}), "deadpeer: lock: held by process 12: context canceled\ndeadpeer: interrupted\n"},
		"both":           {fmt.Errorf("%w; and %w", context.Canceled, lost), "deadpeer: context canceled; and put back: permission denied\ndeadpeer: interrupted\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var said strings.Builder
			if code := (&app{stderr: &said}).code(ctx, test.err); code != exitSignal || said.String() != test.want {
				t.Errorf("%d, said %q, want %q", code, said.String(), test.want)
			}
		})
	}
}

// What a flag selects is one value, whatever is in it.
func TestSelectionByName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"tmux: server", "(sd-pam)", "a or uid = 0", `say "hi"`, `back\slash`, "or", "sshd*"} {
		f, err := conn.ParseFilter(common{comm: name, pid: 4}.predicates(), conn.Resolver{})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if want := "pid = 4 and comm = " + conn.Quote(name); f.String() != want {
			t.Errorf("%q: %s, want %s", name, f, want)
		}
	}
}
