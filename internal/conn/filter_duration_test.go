package conn

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	tests := []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"90s", 90 * time.Second, true},
		{"1d", 24 * time.Hour, true},
		{"1.5w", 252 * time.Hour, true},
		{"1d12h30m", 36*time.Hour + 30*time.Minute, true},
		{"-2d", -48 * time.Hour, true},
		{"+1µs", time.Microsecond, true},
		{"0", 0, true},
		{"0s", 0, true},
		{"2562047h47m16.854775807s", 1<<63 - 1, true},
		{"2562047h47m16.854775808s", 0, false},
		{"15251w", 0, false},
		{"15250w6d", 0, false},
		{"", 0, false}, {"-", 0, false}, {"10", 0, false}, {"s", 0, false}, {"1x", 0, false}, {"1d2", 0, false},
		{"1 d", 0, false}, {"--1s", 0, false}, {"1-s", 0, false}, {".s", 0, false}, {"..1s", 0, false},
	}
	for _, tt := range tests {
		got, err := ParseDuration(tt.in)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("%q: got %v, %v", tt.in, got, err)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"90s", "1.5w", "-1d2h", "1µs", "9999999999w", ".d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if want, goErr := time.ParseDuration(s); goErr == nil && err == nil && d != want {
			t.Fatalf("%q: got %v, time.ParseDuration %v", s, d, want)
		}
		if err == nil {
			if again, err := ParseDuration(d.String()); d > -1<<63 && (err != nil || again != d) {
				t.Fatalf("%q: %v read back as %v, %v", s, d, again, err)
			}
		}
	})
}
