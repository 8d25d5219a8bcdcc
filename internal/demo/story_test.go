package demo

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"deadpeer/internal/engine"
)

// The line that shows how far asking is must be wiped before the next one.
func TestStoryLive(t *testing.T) {
	var out bytes.Buffer
	s := &Story{Out: &out, Live: true}
	for _, at := range []time.Duration{time.Second, 1010 * time.Millisecond, 2 * time.Second} {
		s.Progress(engine.Progress{Alive: 6, Silent: 1, Elapsed: at})
	}
	s.Observe(Cut, &Result{})
	const wipe = "\r\x1b[K"
	want := wipe + "   asking: 6 answered, 1 silent, for 1.0 s" +
		wipe + "   asking: 6 answered, 1 silent, for 2.0 s" + wipe + "\n2  The laptop"
	if !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %q, want %q first", &out, want)
	}
	out.Reset()
	if s.Observe(Regained, &Result{}); strings.Contains(out.String(), wipe) {
		t.Errorf("wiped twice: %q", &out)
	}
}

func TestStoryPlain(t *testing.T) {
	var plain, coloured bytes.Buffer
	p, c := &Story{Out: &plain}, &Story{Out: &coloured, Colour: true}
	p.Progress(engine.Progress{Elapsed: time.Second})
	for step := Staged; step <= Over; step++ {
		r := &Result{Reached: step, Answer: answerConflict, Verdicts: []Verdict{{}}}
		p.Observe(step, r)
		c.Observe(step, r)
	}
	tells(t, plain.String(), answerConflict)
	stripped := coloured.String()
	for _, colour := range []string{"0", bold, dim, green, red, yellow} {
		code := "\x1b[" + colour + "m"
		if !strings.Contains(stripped, code) {
			t.Errorf("colour %q is not used", colour)
		}
		stripped = strings.ReplaceAll(stripped, code, "")
	}
	if stripped != plain.String() {
		t.Errorf("but for colour\n%q\nis not\n%q", stripped, &plain)
	}
}

// tells wants the facts in the story, and no line wider than a terminal.
func tells(t *testing.T, story string, facts ...string) {
	t.Helper()
	for _, f := range facts {
		if !strings.Contains(story, f) {
			t.Errorf("the story does not tell %q", f)
		}
	}
	for line := range strings.Lines(story) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if strings.ContainsAny(story, "\x1b\r") {
		t.Error("control characters in a story without colour")
	}
}

func TestStoryWriteError(t *testing.T) {
	r, w := io.Pipe()
	_ = r.Close()
	s := &Story{Out: w}
	s.Observe(Cut, &Result{})
	if err := s.End(); err == nil || !strings.HasPrefix(err.Error(), "write output: ") {
		t.Errorf("got %v", err)
	}
}

func TestClock(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 3 * time.Second: "3 s", time.Minute: "1 m 0 s", time.Hour: "1 h 0 m 0 s", 7875 * time.Second: "2 h 11 m 15 s",
	} {
		if got := clock(d); got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
	}
}
