package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"deadpeer/heartbeat"
	"deadpeer/internal/beat"
)

func beatLines(t *testing.T, now time.Time) []beatLine {
	t.Helper()
	line := func(url string, state heartbeat.State, ago time.Duration, err error) beatLine {
		e, openErr := beat.Open(url)
		if openErr != nil {
			t.Fatal(openErr)
		}
		t.Cleanup(func() { _ = e.Close() })
		l := beatLine{at: now, since: now.Add(-ago), endpoint: e, state: state, err: err}
		if state == heartbeat.Up {
			l.latency, l.p99 = 300*time.Microsecond, 512*time.Microsecond
		}
		return l
	}
	waiting := line("tcp://10.0.0.9:22", heartbeat.NotReady, 0, nil)
	waiting.at, waiting.since = time.Time{}, time.Time{}
	return []beatLine{
		line("redis://:hidden@10.0.0.1", heartbeat.Up, 95*time.Second, nil),
		waiting,
		line("https://user:hidden@10.0.0.2/a/long/path/"+strings.Repeat("x", 80), heartbeat.Down, 2*time.Hour, errors.New("hidden went wrong\x1b[2J")),
		line("zeo://10.0.0.3:8100/1", heartbeat.Suspect, 0, errors.New("no answer")),
	}
}

func TestBeatScreen(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, test := range []struct {
		width, height int
		colour        bool
		want          string
	}{
		{60, 24, false, `
STATE       FOR      LATENCY    P99         URL
up          95s      0.3 ms     ≤ 0.512 ms  redis://10.0.0.1
connecting           -          -           tcp://10.0.0.9:…
down        2h       -          -           https://user@10…
            xxxxx went wrong\x1b[2J
suspect     0s       -          -           zeo://10.0.0.3:…
            no answer
4 endpoints: 1 up, 1 suspect, 1 down, 1 connecting`},
		{80, 24, true, `
STATE       FOR      LATENCY    P99         URL
<32>up<0>          95s      0.3 ms     ≤ 0.512 ms  redis://10.0.0.1
<2>connecting<0>           -          -           tcp://10.0.0.9:22
<1;31>down<0>        2h       -          -           https://user@10.0.0.2/a/long/path/x…
            xxxxx went wrong\x1b[2J
<33>suspect<0>     0s       -          -           zeo://10.0.0.3:8100/1  no answer
4 endpoints: 1 up, 1 suspect, 1 down, 1 connecting`},
		{80, 6, false, `
STATE       FOR      LATENCY    P99         URL
down        2h       -          -           https://user@10.0.0.2/a/long/path/x…
            xxxxx went wrong\x1b[2J
suspect     0s       -          -           zeo://10.0.0.3:8100/1  no answer
connecting           -          -           tcp://10.0.0.9:22
4 endpoints: 1 up, 1 suspect, 1 down, 1 connecting; 1 not shown`},
	} {
		drawn := string(drawBeat(beatLines(t, now), now, test.width, test.height, test.colour))
		got := strings.NewReplacer("\x1b[H", "\n", "\x1b[K", "", "\x1b[J", "", "\r", "").Replace(drawn)
		for _, code := range []string{"32", "2", "1;31", "33", "0"} {
			got = strings.ReplaceAll(got, "\x1b["+code+"m", "<"+code+">")
		}
		if got != test.want {
			t.Errorf("%d x %d:%s\nwant%s", test.width, test.height, got, test.want)
		}
	}
}

// Whatever the size, no more is drawn than fits.
func TestBeatScreenFits(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var lines []beatLine
	for range 30 {
		lines = append(lines, beatLines(t, now)...)
	}
	for _, size := range [][2]int{{1, 1}, {1, 5}, {10, 2}, {40, 3}, {80, 24}, {500, 1000}} {
		text := string(drawBeat(lines, now, size[0], size[1], false))
		rows := strings.Split(strings.NewReplacer("\x1b[H", "", "\x1b[K", "", "\x1b[J", "", "\r", "").Replace(text), "\n")
		if len(rows) > max(size[1], 2) {
			t.Errorf("%v: %d rows", size, len(rows))
		}
		for _, row := range rows {
			if n := utf8.RuneCountInString(row); n > size[0] {
				t.Errorf("%v: %d columns: %s", size, n, row)
			}
		}
		if strings.Contains(text, "hidden") {
			t.Error(fmt.Sprint(size), "shows a password")
		}
	}
}
