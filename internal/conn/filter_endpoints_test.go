package conn

import (
	"net/netip"
	"testing"
)

func TestEndpoints(t *testing.T) {
	t.Parallel()
	local, peer := netip.MustParseAddrPort("10.0.0.1:3050"), netip.MustParseAddrPort("10.0.0.9:40112")
	for text, c := range map[string]struct {
		want Truth
		only bool
	}{
		"":                                  {Yes, true},
		"sport = :3050":                     {Yes, true},
		"sport = :3051":                     {No, true},
		"dst 10.0.0.0/8 and family = ipv4":  {Yes, true},
		"src ::/0":                          {No, true},
		"not dst 10.0.0.9":                  {No, true},
		"comm = firebird":                   {Maybe, false},
		"sport = :3050 and heard > 10m":     {Maybe, false},
		"sport = :3051 and heard > 10m":     {No, false},
		"sport = :3050 or cookie = 7":       {Yes, false},
		"sport = :3051 or cookie = 7":       {Maybe, false},
		"not ( cookie = 7 )":                {Maybe, false},
		"state time-wait and sport = :3050": {Maybe, false},
	} {
		f, err := ParseFilter([]string{text}, Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Endpoints(local, peer); got != c.want {
			t.Errorf("%q: %v, want %v", text, got, c.want)
		}
		if got := f.OnlyEndpoints(); got != c.only {
			t.Errorf("%q: only endpoints %v, want %v", text, got, c.only)
		}
	}
}
