package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/internal/beat"
)

// slowly is a server that takes its time.
type slowly struct{ connect, ping time.Duration }

func (s slowly) Reconnect(context.Context) error { time.Sleep(s.connect); return nil }
func (s slowly) Ping(context.Context) error      { time.Sleep(s.ping); return nil }

// beatFor beats one target on a clock of its own, and gives what a table shows
// of it then.
func beatFor(t *testing.T, d time.Duration, target beat.Target) beatLine {
	t.Helper()
	e, err := beat.Open("redis://10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	e.Target = target
	a := &app{stdout: &bytes.Buffer{}}
	view := a.beatView("table", false, []*beat.Endpoint{e})
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	flags := beatFlags{period: duration(time.Second), deadline: duration(10 * time.Second), failures: 2}
	if err := a.beatOn(ctx, flags, []*beat.Endpoint{e}, view); err != nil {
		t.Error(err)
	}
	return view.copy()[0]
}

// To connect is no ping.
func TestBeatLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		line := beatFor(t, 10*time.Second, slowly{2 * time.Second, 3 * time.Millisecond})
		if line.state != heartbeat.Up || line.latency != 3*time.Millisecond || line.p99 != 4096*time.Microsecond {
			t.Errorf("%v after %v, P99 %v; want up after 3ms, 4.096ms", line.state, line.latency, line.p99)
		}
	})
}

// hangs ignores the deadline of its first attempt to connect, and answers when
// there was a second one.
type hangs struct {
	attempts, out atomic.Int64
	both          atomic.Bool // two were out at a time
}

func (h *hangs) Reconnect(context.Context) error {
	defer h.out.Add(-1)
	if h.out.Add(1) > 1 {
		h.both.Store(true)
	}
	if h.attempts.Add(1) == 1 {
		time.Sleep(time.Minute)
	}
	return nil
}

func (h *hangs) Ping(context.Context) error {
	if h.attempts.Load() < 2 {
		return errors.New("not connected")
	}
	return nil
}

func TestBeatFirstAttemptHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		if line := beatFor(t, 30*time.Second, &hangs{}); line.state != heartbeat.Down || !errors.Is(line.err, heartbeat.ErrNotReturned) {
			t.Errorf("while it hangs: %v, %v", line.state, line.err)
		}
		time.Sleep(time.Minute)
		h := &hangs{}
		if line := beatFor(t, 3*time.Minute, h); line.state != heartbeat.Up || h.attempts.Load() != 2 || h.both.Load() {
			t.Errorf("after it: %v, %v after %d attempts", line.state, line.err, h.attempts.Load())
		}
	})
}

// refused is a server that is not there.
type refused struct{}

func (refused) Reconnect(context.Context) error { return errors.New("connection refused") }
func (refused) Ping(context.Context) error      { return errors.New("not connected") }

// A disk that is full is no reason to report everything up.
func TestBeatTellsThatItCouldNotWrite(t *testing.T) {
	t.Parallel()
	e, err := beat.Open("redis://10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, output := range []string{"table", "jsonl"} {
		r, stdout := io.Pipe()
		_ = r.CloseWithError(errors.ErrUnsupported) // no write succeeds
		v := (&app{stdout: stdout}).beatView(output, false, []*beat.Endpoint{e})
		v.show(beatLine{at: time.Now(), endpoint: e, state: heartbeat.Up})
		if err := v.close(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: close = %v, want what became of the write", output, err)
		}
	}
}

// What pings have told the attempt to connect that follows does not repeat.
func TestBeatRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, err := beat.Open("redis://10.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		e.Target = refused{}
		var out bytes.Buffer
		a := &app{stdout: &out}
		ctx, cancel := context.WithTimeout(t.Context(), 1100*time.Millisecond)
		defer cancel()
		flags := beatFlags{output: "jsonl", period: duration(time.Second), deadline: duration(10 * time.Second), failures: 2}
		if err := a.beatOn(ctx, flags, []*beat.Endpoint{e}, a.beatView("jsonl", false, []*beat.Endpoint{e})); err != nil {
			t.Error(err)
		}
		var times []string
		for line := range bytes.Lines(out.Bytes()) {
			var l struct{ At, State, Error string }
			if err := json.Unmarshal(line, &l); err != nil || l.Error != "connection refused" {
				t.Fatalf("%v: %s", err, line)
			}
			times = append(times, l.State+" "+l.At)
		}
		if len(times) < 3 || !strings.HasPrefix(times[0], "suspect ") || !strings.HasPrefix(times[1], "down ") || times[2] == times[1] {
			t.Errorf("told %q; want suspect, down at once, then nothing before the next attempt", times)
		}
	})
}
