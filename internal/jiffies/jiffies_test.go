package jiffies

import (
	"strings"
	"testing"
	"time"
)

const sample = "Timer List Version: v0.10\nHRTIMER_MAX_CLOCK_BASES: 8\nnow at 3600004000000 nsecs\n\ncpu: 0\n active timers:\n #0: <0>, tick_nohz_handler, S:01\njiffies: 4295792297\njiffies: 1\n"

func TestParse(t *testing.T) {
	t.Parallel()
	now, ticks, err := parse(strings.NewReader(sample))
	if err != nil || now != time.Hour+4*time.Millisecond || ticks != 4295792297 {
		t.Errorf("%v, %d, %v", now, ticks, err)
	}
	for text, want := range map[string]string{
		"":                                  "neither",
		"jiffies: 7\n":                      "neither",
		"now at 5 nsecs\n":                  "neither",
		"now at soon\njiffies: 7\n":         `time "soon"`,
		"now at -1 nsecs\njiffies: 7\n":     `time "-1"`,
		"now at 5 nsecs\njiffies: many\n":   `jiffies "many"`,
		"now at 5 nsecs\njiffies: -3\n":     `jiffies "-3"`,
		strings.Repeat("x", 70_000) + "\n":  "too long",
		strings.Repeat("x\n", 600_000) + "": "neither",
	} {
		if _, _, err := parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", text, err, want)
		}
	}
}

func TestAt(t *testing.T) {
	t.Parallel()
	c := Counter{hz: 250, zero: 1000}
	if got := c.At(time.Second + 5*time.Millisecond); got.Jiffies != 1251 || got.Since != time.Millisecond {
		t.Errorf("%+v", got)
	}
	if got := (Counter{}).At(time.Second); got.Jiffies != 0 || (Counter{}).Known() {
		t.Errorf("%+v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("now at 9223372036854775807 nsecs\njiffies: 9223372036854775807\n")
	f.Add("now at \njiffies: \n")
	f.Fuzz(func(t *testing.T, text string) {
		if now, ticks, err := parse(strings.NewReader(text)); err == nil && (now < 0 || ticks < 0) {
			t.Errorf("%v, %d", now, ticks)
		}
	})
}
