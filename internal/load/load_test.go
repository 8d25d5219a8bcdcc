package load

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r, err := Run(ctx, Options{Lasting: 2, Fresh: 1, Rate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests == 0 || r.Connections < 3 || r.Median > r.P99 || r.P99 == 0 || r.Took == 0 {
		t.Errorf("%+v", r)
	}
}

// A server that changes or swallows a byte does not go unnoticed.
func TestNoticed(t *testing.T) {
	t.Parallel()
	for want, spoil := range map[string]func([]byte) []byte{
		"not the request": func(b []byte) []byte { b[len(b)/2]++; return b },
		"unexpected EOF":  func(b []byte) []byte { return b[1:] },
	} {
		here, there := net.Pipe()
		go func() {
			defer func() { _ = there.Close() }()
			b := make([]byte, size)
			if n, err := there.Read(b); err == nil {
				_, _ = there.Write(spoil(b[:n]))
			}
		}()
		if err := new(client).talk(t.Context(), here); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		_ = here.Close()
	}
}
