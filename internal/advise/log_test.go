package advise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const logText = `
srv	Mon Nov 14 10:00:00 2005
	INET/inet_error: read errno = 10054

srv (Server)	Tue Nov 15 10:00:00 2005
	INET/inet_error: read errno = 104, client host = desk7, address = 10.0.0.7/40112, user = anna

srv	Tue Nov 15 11:00:00 2005
	INET/inet_error: send errno = 110, client host = desk7, address = 10.0.0.7/40113, user = anna

srv	Wed Nov 16  9:00:00 2005
	WNET/wnet_error: ReadFile errno = 109

srv	Wed Nov 16 10:00:00 2005
	INET/inet_error: connect errno = 111
	INET/inet_error: read errno = 109
	Database: errno = 104 is quoted here
	INET/inet_error: read errno = 104, client host = x` + "\x1b[2J" + `, user = b
`

func TestReadLog(t *testing.T) {
	t.Parallel()
	l, err := ReadLog(t.Context(), strings.NewReader(logText))
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Total(); got != (HostErrors{Resets: 3, Timeouts: 1, NetBEUI: 1}) {
		t.Errorf("total %+v", got)
	}
	want := []HostErrors{{Host: "", Resets: 1, NetBEUI: 1}, {Host: "10.0.0.7", Resets: 1, Timeouts: 1}, {Host: `x\x1b[2J`, Resets: 1}}
	if fmt.Sprint(l.Hosts) != fmt.Sprint(want) {
		t.Errorf("hosts %+v, want %+v", l.Hosts, want)
	}
	if l.Entries != 5 || l.Span() != 48*time.Hour {
		t.Errorf("%d entries over %v", l.Entries, l.Span())
	}
}

// A log of any size, with lines of any length and any number of clients, is
// read in the same memory.
func TestHugeLog(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("srv\tMon Nov 14 10:00:00 2005\n\t" + strings.Repeat("x", 1<<20) + "errno = 104\n")
	for i := range maxLogHosts + 500 {
		fmt.Fprintf(&b, "\tINET/inet_error: read errno = 104, client host = h, address = h%d/1\n", i)
	}
	l, err := ReadLog(t.Context(), strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Hosts) != maxLogHosts || l.Others.Resets != 500 || l.Total().Resets != maxLogHosts+500 {
		t.Errorf("%d clients, %+v others, total %+v", len(l.Hosts), l.Others, l.Total())
	}
}

func TestOpenLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "firebird.log")
	if err := os.WriteFile(name, []byte(logText), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := OpenLog(t.Context(), name); err != nil || l.Entries != 5 {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := OpenLog(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	other := filepath.Join(dir, "other.log")
	if err := os.WriteFile(other, []byte("Nov 14 10:00:00 host kernel: INET/inet_error: read errno = 104\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLog(t.Context(), other); err == nil || !strings.Contains(err.Error(), "no entry") {
		t.Errorf("another program's log: %v", err)
	}
	if _, err := OpenLog(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestReadLogCanBeStopped(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadLog(ctx, strings.NewReader(logText)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// The direction is that of the article's Russian text: the more breaks, the
// shorter the idle time.
func TestLogAdvice(t *testing.T) {
	t.Parallel()
	log := func(errors int, days int) *LogSummary {
		from := time.Date(2005, 11, 14, 0, 0, 0, 0, time.UTC)
		return &LogSummary{From: from, To: from.AddDate(0, 0, days), Hosts: []HostErrors{{Host: "a", Resets: errors}}}
	}
	for _, test := range []struct {
		errors, days int
		longest      time.Duration
		idle         time.Duration
		probes       int
	}{
		{0, 10, 0, 15 * time.Minute, 5},
		{9, 10, 0, 15 * time.Minute, 5},
		{10, 10, 0, 5 * time.Minute, 5},
		{100, 10, 0, time.Minute, 7},
		{100, 10, 30 * time.Second, time.Minute, 7},
		{100, 10, 10 * time.Minute, 10 * time.Minute, 7},
		{100, 10, 1500 * time.Millisecond, time.Minute, 7},
		{100, 10, 90500 * time.Millisecond, 91 * time.Second, 7},
		{100, 0, 0, time.Minute, 7}, // all within a day
		{0, 0, 1000 * time.Hour, 32767 * time.Second, 5},
	} {
		a := log(test.errors, test.days).Advise(test.longest)
		if p := a.Policy; p.Idle != test.idle || p.Probes != test.probes || p.Interval < leastInterval || len(a.Reasons) != 2 {
			t.Errorf("%+v: %+v, %q", test, p, a.Reasons)
		}
		if err := a.Policy.ValidateFor("linux"); err != nil {
			t.Errorf("%+v: %v", test, err)
		}
	}
	previous := time.Hour
	for errors := range 200 {
		a := log(errors, 10).Advise(0)
		if a.Policy.Idle > previous {
			t.Fatalf("%d errors: idle %v after %v", errors, a.Policy.Idle, previous)
		}
		previous = a.Policy.Idle
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add(logText)
	f.Add("\tMon Nov 14 10:00:00 2005")
	f.Add("INET/ errno = 99999999999999999999")
	f.Add("INET/inet_error: errno = 104, address = /, client host = ")
	f.Add("INET/inet_error: errno = 104, address = \xff\xfe" + strings.Repeat("a", 300))
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ReadLog(t.Context(), strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if l.Span() < 0 {
			t.Fatalf("from %v to %v", l.From, l.To)
		}
		for _, h := range l.Hosts {
			for _, r := range h.Host {
				if r < ' ' {
					t.Fatalf("%q would be shown", h.Host)
				}
			}
		}
		if err := l.Advise(0).Policy.ValidateFor("linux"); err != nil {
			t.Fatal(err)
		}
	})
}
