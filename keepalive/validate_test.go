package keepalive

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name  string
		p     Policy
		field string // "" when it is a good policy
	}{
		{"zero", Policy{}, ""},
		{"plain", Policy{Idle: 60 * s, Interval: 10 * s, Probes: 6}, ""},
		{"least", Policy{Idle: 1, Interval: 1, Probes: 1}, ""},
		{"most", Policy{Idle: 32767 * s, Interval: 32767 * s, Probes: 127, UserTimeout: -1}, ""},
		{"user timeout as long as keepalive", Policy{Idle: 5 * s, Interval: 2 * s, Probes: 3, UserTimeout: 11 * s}, ""},
		{"just over the floor", Policy{Idle: 5 * s, Interval: 2 * s, Probes: 3, UserTimeout: 9*s + 1}, ""},
		{"at the floor", Policy{Idle: 5 * s, Interval: 2 * s, Probes: 3, UserTimeout: 9 * s}, "user timeout"},
		{"rounding counts", Policy{Idle: 4*s + 1, Interval: 1*s + 1, Probes: 3, UserTimeout: 9 * s}, "user timeout"},
		{"unknown probes are two", Policy{Idle: 5 * s, Interval: 2 * s, UserTimeout: 7 * s}, "user timeout"},
		{"unknown probes are two, over", Policy{Idle: 5 * s, Interval: 2 * s, UserTimeout: 7*s + 1}, ""},
		{"one probe is the user's will", Policy{Idle: 5 * s, Interval: 2 * s, Probes: 1, UserTimeout: 6 * s}, ""},
		{"user timeout alone", Policy{UserTimeout: s}, ""},
		{"longest user timeout", Policy{UserTimeout: millisInInt}, ""},
		{"negative idle", Policy{Idle: -1}, "idle"},
		{"long idle", Policy{Idle: 32767*s + 1}, "idle"},
		{"endless idle", Policy{Idle: math.MaxInt64}, "idle"},
		{"negative interval", Policy{Interval: math.MinInt64}, "interval"},
		{"long interval", Policy{Interval: 32768 * s}, "interval"},
		{"negative probes", Policy{Probes: -1}, "probes"},
		{"many probes", Policy{Probes: 128}, "probes"},
		{"long user timeout", Policy{UserTimeout: millisInInt + 1}, "user timeout"},
		{"endless user timeout", Policy{UserTimeout: math.MaxInt64}, "user timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.p.ValidateFor("linux")
			if tt.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var bad *PolicyError
			if !errors.As(err, &bad) {
				t.Fatalf("got %v, want a PolicyError", err)
			}
			if bad.Field != tt.field || bad.Value == "" || bad.Allowed == "" || bad.Mend == "" {
				t.Errorf("got %+v, want field %q with value, range and mend", *bad, tt.field)
			}
			for _, part := range []string{bad.Field, bad.Value, bad.Allowed, bad.Mend} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not name %q", err, part)
				}
			}
		})
	}
}

func TestValidateForOtherSystems(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		goos  string
		p     Policy
		field string
	}{
		{"windows", Policy{Probes: 255}, ""},
		{"windows", Policy{Probes: 256}, "probes"},
		{"windows", Policy{Idle: 40000 * s}, ""},
		{"darwin", Policy{Idle: 60 * s, Interval: 10 * s, Probes: 6, UserTimeout: 30 * s}, ""}, // does not end the probing
		{"android", Policy{Idle: 60 * s, Interval: 10 * s, Probes: 6, UserTimeout: 30 * s}, "user timeout"},
		{"ios", Policy{Idle: 2147484 * s}, "idle"},
		{"freebsd", Policy{Idle: s, Interval: 2147483 * s, Probes: 1}, "probes"},
		{"freebsd", Policy{Interval: 2147483 * s, Probes: 1}, ""},
		{"dragonfly", Policy{Interval: s, Probes: math.MaxInt32}, "probes"},
		{"netbsd", Policy{UserTimeout: millisInInt}, "user timeout"},
		{"openbsd", Policy{Idle: -s}, "idle"},
		{"illumos", Policy{Idle: 9*s + 1}, ""},
		{"illumos", Policy{Idle: 9 * s}, "idle"},
		{"solaris", Policy{Idle: 864001 * s}, "idle"},
		{"solaris", Policy{Interval: 2*time.Hour + 1}, "interval"},
	} {
		err := tt.p.ValidateFor(tt.goos)
		var bad *PolicyError
		switch {
		case tt.field == "" && err != nil:
			t.Errorf("%s %+v: %v", tt.goos, tt.p, err)
		case tt.field != "" && (!errors.As(err, &bad) || bad.Field != tt.field):
			t.Errorf("%s %+v: got %v, want a PolicyError of %s", tt.goos, tt.p, err, tt.field)
		}
	}
	if err := (Policy{}).ValidateFor("plan9"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("plan9: got %v, want ErrUnsupported", err)
	}
}
