package keepalive_test

import (
	"strings"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

func TestProfiles(t *testing.T) {
	const s, m = time.Second, time.Minute
	// The article's totals are its bound, in the Russian text.
	for _, want := range []struct {
		name                     string
		idle, interval           time.Duration
		probes                   int
		detection, bound         time.Duration
		forgets                  time.Duration
		probesPerHourPerThousand int
	}{
		{"modem", m, 30 * s, 3, 150 * s, 3 * m, 0, 60000},
		{"lan", 30 * s, 10 * s, 5, 80 * s, 90 * s, 0, 120000},
		{"any", 15 * m, m, 4, 19 * m, 20 * m, 0, 4000},
		{"long-transactions", 12 * m, 15 * s, 7, 825 * s, 14 * m, 0, 5000},
		{"aws-nlb", 200 * s, 20 * s, 5, 300 * s, 320 * s, 350 * s, 18000},
		{"azure-lb", 2 * m, 15 * s, 5, 195 * s, 210 * s, 4 * m, 30000},
		{"gcp", 5 * m, 30 * s, 6, 8 * m, 510 * s, 10 * m, 12000},
		{"ipvs", 8 * m, m, 5, 13 * m, 14 * m, 15 * m, 7500},
		{"k8s", m, 10 * s, 6, 2 * m, 130 * s, 4 * m, 60000},
		{"fast", 5 * s, s, 5, 10 * s, 11 * s, 0, 720000},
	} {
		p, err := keepalive.ProfileByName(strings.ToUpper(want.name))
		if err != nil {
			t.Error(err)
			continue
		}
		policy := keepalive.Policy{Idle: want.idle, Interval: want.interval, Probes: want.probes, UserTimeout: -1}
		if p.Name != want.name || p.Policy != policy || p.Forgets != want.forgets || !strings.HasSuffix(p.Fits, ".") {
			t.Errorf("%s: %+v", want.name, p)
		}
		if p.DetectionTime() != want.detection || p.ArticleBound() != want.bound || p.ProbesPerHour() != want.probesPerHourPerThousand {
			t.Errorf("%s: given up after %v, bound %v, %d probes an hour", want.name, p.DetectionTime(), p.ArticleBound(), p.ProbesPerHour())
		}
	}
	all := keepalive.Profiles()
	if len(all) != 10 {
		t.Errorf("%d profiles", len(all))
	}
	for _, p := range all {
		for _, goos := range []string{"linux", "windows", "darwin", "freebsd"} {
			if err := p.Policy.ValidateFor(goos); err != nil {
				t.Errorf("%s on %s: %v", p.Name, goos, err)
			}
		}
		for _, hz := range []int{100, 250, 1000} {
			f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: p.Policy, HZ: hz})
			if f.Earliest != p.DetectionTime() || f.ArticleBound != p.ArticleBound() {
				t.Errorf("%s: forecast %v and %v, profile %v and %v", p.Name, f.Earliest, f.ArticleBound, p.DetectionTime(), p.ArticleBound())
			}
			if p.Forgets > 0 && f.Latest >= p.Forgets {
				t.Errorf("%s at HZ %d: %v at latest, but the path forgets after %v", p.Name, hz, f.Latest, p.Forgets)
			}
		}
	}
}

func TestProfileByNameSuggests(t *testing.T) {
	for name, want := range map[string]string{
		"aws":      "did you mean aws-nlb?",
		"k8":       "did you mean k8s?",
		"modme":    "did you mean modem?",
		"azure-bl": "did you mean azure-lb?",
		"zzzzzzz":  `no "zzzzzzz": there are modem, lan,`,
		"":         `no "": there are`,
		"\x1b[31m": `no "\x1b[31m":`,
	} {
		if _, err := keepalive.ProfileByName(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", name, err, want)
		}
	}
	if _, err := keepalive.ProfileByName(strings.Repeat("x", 1<<20)); err == nil {
		t.Error("a megabyte of x is a profile")
	}
}
