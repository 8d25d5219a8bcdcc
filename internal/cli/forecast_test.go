package cli

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

// A flag is refused in the very situations in which it changes nothing.
func TestFlagSituations(t *testing.T) {
	t.Parallel()
	give := map[string]func(*forecast.Input, int){
		"retries2":       func(in *forecast.Input, n int) { in.Retries2 = 3 + 4*n },
		"syn-retries":    func(in *forecast.Input, n int) { in.SYNRetries = 3 + 4*n },
		"orphan-retries": func(in *forecast.Input, n int) { in.OrphanRetries = 3 + 4*n },
		"fin-timeout":    func(in *forecast.Input, n int) { in.FinTimeout = time.Duration(30+n) * time.Second },
		"probed-for":     func(in *forecast.Input, n int) { in.ProbedFor = time.Duration(1+n) * time.Second },
	}
	for flag, situations := range flagSituations {
		for _, s := range forecast.Situations() {
			var got [2]forecast.Forecast
			for n := range got {
				in := forecast.Input{KeepAlive: true, Policy: keepalive.Policy{Idle: time.Minute, Interval: time.Second, Probes: 3}}
				give[flag](&in, n)
				var err error
				if got[n], err = forecast.For(s, in); err != nil {
					t.Fatal(err)
				}
			}
			if changes := !reflect.DeepEqual(got[0], got[1]); changes != slices.Contains(situations, string(s)) {
				t.Errorf("--%s in %s: changes something %v", flag, s, changes)
			}
		}
	}
}
