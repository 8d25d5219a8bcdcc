package conn

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func (r FutureRule) fits(s *Sock) bool {
	peer := s.Peer().Addr().Unmap()
	return r.LocalLow <= s.LocalPort && s.LocalPort <= r.LocalHigh && r.PeerLow <= s.PeerPort && s.PeerPort <= r.PeerHigh &&
		(!r.Peer.IsValid() || r.Peer.Contains(peer))
}

// The rules select what Match selects, of established connections.
func TestFuture(t *testing.T) {
	for _, text := range []string{
		"", "sport = :80", "sport != :80", "not sport = :80", "sport >= :1000 and sport < :2000", "dport = :443 or dport = :80",
		"dst 10.0.0.0/8", "not dst 10.0.0.0/8", "dst 10.0.0.0/8 and dport = :80", "dst 10.0.0.1:80", "not ( dst 10.0.0.0/8 or sport > :90 )",
		"state established", "state established and sport = :80", "family = ipv4", "family != ipv6 and dst 10.1.0.0/16", "src :80",
		"dst 2001:db8::/32", "not dst 2001:db8::/32", "not dst 10.0.0.0/8 or sport > :80", "sport >= :0", "not dport = :0",
	} {
		f, err := ParseFilter(strings.Fields(text), Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		rules, err := f.Future()
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			s := randomPeer(rnd)
			fits := false
			for _, r := range rules {
				fits = fits || r.fits(&s)
			}
			if want := f.Match(&Subject{Sock: &s}) == Yes; fits != want {
				t.Fatalf("%s: %s -> %s: rules say %v, the filter %v\n%+v", text, s.Local(), s.Peer(), fits, want, rules)
			}
		}
	}
}

func randomPeer(rnd *rand.Rand) Sock {
	ports := []uint16{1, 79, 80, 81, 90, 91, 443, 999, 1000, 1999, 2000, 65535}
	peers := []string{"10.0.0.1", "10.0.0.2", "10.1.2.3", "11.0.0.1", "9.255.255.255", "2001:db8::1", "2001:db9::1", "::1"}
	s := Sock{State: Established, Family: IPv4, LocalPort: ports[rnd.IntN(len(ports))], PeerPort: ports[rnd.IntN(len(ports))]}
	addr := netip.MustParseAddr(peers[rnd.IntN(len(peers))])
	if addr.Is6() {
		s.Family = IPv6
	}
	s.PeerIP, s.LocalIP = addr.As16(), addr.As16()
	return s
}

func TestFutureRefuses(t *testing.T) {
	for text, part := range map[string]string{
		"heard > 10m":                 `"heard > 10m"`,
		"sport = :80 and comm = a":    `"comm = a"`,
		"src 10.0.0.1":                `"src = 10.0.0.1"`,
		"not dst 10.0.0.1:80":         `"not dst = 10.0.0.1:80"`,
		"blind":                       `"blind"`,
		"state close-wait":            "leaves out established",
		"pid = 1":                     `"pid = 1"`,
		"sport = :0":                  "no connection",
		"dport < :1":                  "no connection",
		"sport = :80 and sport = :81": "no connection",
		"dst 10.0.0.0/8 and dst 10.1.0.0/16 and dst 11.0.0.0/8": "no connection",
		"verdict = dead or sport = :80":                         `"verdict = dead"`,
		"not dst 2001:db8::1 or not dst 2001:db8::2":            "more than 64",
	} {
		f, err := ParseFilter(strings.Fields(text), Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		if rules, err := f.Future(); err == nil || !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("%s: %v, %v; want %s named", text, rules, err, part)
		}
	}
}
