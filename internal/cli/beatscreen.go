package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"deadpeer/heartbeat"
)

// beatScreen draws a table on a terminal's second screen, so that neither a
// change of its size nor more endpoints than lines spoil the first.
type beatScreen struct {
	out    *os.File
	colour bool
	wake   chan struct{} // something has changed
	stop   chan struct{}
	done   chan struct{}
}

func newBeatScreen(out *os.File, colour bool) *beatScreen {
	return &beatScreen{out, colour, make(chan struct{}, 1), make(chan struct{}), make(chan struct{})}
}

func (s *beatScreen) changed() {
	select {
	case s.wake <- struct{}{}:
	default: // it was told
	}
}

// Control sequences of xterm (ctlseqs): the second screen, no cursor, and no
// wrapping of lines that turn out wider than counted; and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// run draws at most ten times a second, at least once, until close.
func (s *beatScreen) run(lines func() []beatLine) {
	defer close(s.done)
	_, _ = io.WriteString(s.out, enterScreen) // a terminal that has gone shows by SIGHUP
	defer func() { _, _ = io.WriteString(s.out, leaveScreen) }()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for {
		width, height, err := term.GetSize(int(s.out.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			width, height = 80, 24
		}
		_, _ = s.out.Write(drawBeat(lines(), time.Now(), width, height, s.colour))
		select {
		case <-s.stop:
			return
		case <-pause.C:
		}
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-second.C: // the times have
		}
	}
}

func (s *beatScreen) close() {
	close(s.stop)
	<-s.done
}

// drawBeat fills a screen. Where not all fits, those that are not up come
// first, and the rest is counted.
func drawBeat(lines []beatLine, now time.Time, width, height int, colour bool) []byte {
	counts := map[string]int{}
	needed := 0
	for _, l := range lines {
		counts[l.word()]++
		needed += len(l.rows(now, width))
	}
	room := height - 2 // of a head and a foot
	left := 0
	if needed > room {
		slices.SortStableFunc(lines, func(a, b beatLine) int { return a.urgency() - b.urgency() })
	}
	var b bytes.Buffer
	b.WriteString("\x1b[H")
	row := func(text, code string) {
		text = cut(text, width)
		if code != "" && colour {
			// The first word is the state.
			state, rest, _ := strings.Cut(text, " ")
			text = code + state + "\x1b[0m " + rest
		}
		fmt.Fprintf(&b, "%s\x1b[K\r\n", text)
	}
	row(fmt.Sprintf("%-10s  %-7s  %-9s  %-10s  %s", "STATE", "FOR", "LATENCY", "P99", "URL"), "")
	for _, l := range lines {
		rows := l.rows(now, width)
		if left > 0 || len(rows) > room {
			left++
			continue
		}
		room -= len(rows)
		for i, text := range rows {
			code := ""
			if i == 0 {
				code = l.colour()
			}
			row(text, code)
		}
	}
	foot := fmt.Sprintf("%d endpoints: %s", len(lines), tally(counts))
	if left > 0 {
		foot += fmt.Sprintf("; %d not shown", left)
	}
	b.WriteString(cut(foot, width) + "\x1b[K\x1b[J")
	return b.Bytes()
}

// rows are an endpoint's: one, or two when its error does not fit beside it.
func (l beatLine) rows(now time.Time, width int) []string {
	since := ""
	if !l.since.IsZero() {
		since = fmt.Sprintf("%ds", max(0, int(now.Sub(l.since).Seconds())))
		if d := now.Sub(l.since).Truncate(time.Second); d >= 100*time.Second {
			since = span(d)
		}
	}
	text := fmt.Sprintf("%-10s  %-7s  %-9s  %-10s  %s", l.word(), since, milliseconds(l.latency), atMost(l.p99), l.endpoint.Name)
	if l.err == nil {
		return []string{text}
	}
	why := l.endpoint.Text(l.err)
	if both := text + "  " + why; utf8.RuneCountInString(both) <= width {
		return []string{both}
	}
	return []string{text, "            " + why}
}

// urgency orders states, the worst first.
func (l beatLine) urgency() int {
	return slices.Index([]string{heartbeat.Down.String(), heartbeat.Suspect.String(), heartbeat.NotReady.String(), "connecting", heartbeat.Up.String()}, l.word())
}

func (l beatLine) colour() string {
	switch l.word() {
	case heartbeat.Up.String():
		return "\x1b[32m"
	case heartbeat.Down.String():
		return "\x1b[1;31m"
	case heartbeat.Suspect.String():
		return "\x1b[33m"
	}
	return "\x1b[2m"
}

// tally counts by state: "97 up, 1 suspect, 2 down".
func tally(counts map[string]int) string {
	var parts []string
	for _, word := range []string{heartbeat.Up.String(), heartbeat.Suspect.String(), heartbeat.Down.String(), heartbeat.NotReady.String(), "connecting"} {
		if n := counts[word]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, word))
		}
	}
	return strings.Join(parts, ", ")
}

// cut ends a text at so many characters.
func cut(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	runes := []rune(text)
	return string(runes[:max(width-1, 0)]) + "…"
}
