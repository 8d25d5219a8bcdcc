package keepalive

import (
	"fmt"
	"strings"
	"time"
)

// Profile is a named policy. None of them touches the user timeout.
type Profile struct {
	Name   string
	Policy Policy
	Fits   string // where it fits, one sentence
	// Forgets is how long the middle of the path that it is made for remembers
	// an idle connection, 0 when it is made for none. The profile's whole
	// cycle, timers at their latest, is over before.
	Forgets time.Duration
}

// Profiles are the profiles: first the four of Ovchinnikov's article on
// InterBase and Firebird (2005, in the Russian text's values; the English one
// merges the last two), then today's. The slice is the caller's.
func Profiles() []Profile {
	profile := func(name string, idle, interval time.Duration, probes int, forgets time.Duration, fits string) Profile {
		return Profile{name, Policy{Idle: idle, Interval: interval, Probes: probes, UserTimeout: -1}, fits, forgets}
	}
	const s, m = time.Second, time.Minute
	return []Profile{
		profile("modem", m, 30*s, 3, 0,
			"Clients on unreliable lines, short transactions, locks held for 3 minutes at most."),
		profile("lan", 30*s, 10*s, 5, 0,
			"Clients on the local network, short transactions, locks held for 2 minutes at most."),
		profile("any", 15*m, m, 4, 0,
			"Clients of all kinds, no limit to how long locks are held."),
		profile("long-transactions", 12*m, 15*s, 7, 0,
			"Clients of all kinds, long transactions, locks held for 15 minutes at most."),
		profile("aws-nlb", 200*s, 20*s, 5, 350*s,
			"Behind an AWS Network Load Balancer, which forgets idle connections after 350 s."),
		profile("azure-lb", 2*m, 15*s, 5, 4*m,
			"Behind an Azure Load Balancer, which forgets idle connections after 4 minutes."),
		profile("gcp", 5*m, 30*s, 6, 10*m,
			"Through Google Cloud's firewalls, which forget idle connections after 10 minutes."),
		profile("ipvs", 8*m, m, 5, 15*m,
			"Through Linux IPVS, which forgets idle connections after 15 minutes."),
		profile("k8s", m, 10*s, 6, 4*m,
			"Between pods and through Services, whichever cloud's load balancer is in front: pods vanish without a word."),
		profile("fast", 5*s, s, 5, 0,
			"Within a data centre, where fail-over has to begin in 10 seconds; too quick for lossy or roaming peers."),
	}
}

// ProfileByName finds a profile, whatever the case of its name. The error
// suggests names that are close, and lists all.
func ProfileByName(name string) (Profile, error) {
	wanted := strings.ToLower(strings.TrimSpace(name))
	var all, similar []string
	for _, p := range Profiles() {
		if p.Name == wanted {
			return p, nil
		}
		all = append(all, p.Name)
		if wanted != "" && (strings.Contains(p.Name, wanted) || strings.Contains(wanted, p.Name) || distance(p.Name, wanted) <= min(2, (len(wanted)+1)/3)) {
			similar = append(similar, p.Name)
		}
	}
	suggestion := ""
	if len(similar) > 0 {
		suggestion = "did you mean " + strings.Join(similar, " or ") + "? "
	}
	return Profile{}, fmt.Errorf("find profile: no %q: %sthere are %s", name, suggestion, strings.Join(all, ", "))
}

// DetectionTime is how long after its last segment Linux gives an idle
// connection up, timers being exact: idle + probes·interval
// (tcp_keepalive_timer). A user timeout that the socket has besides changes it.
func (p Profile) DetectionTime() time.Duration {
	return p.Policy.Idle + time.Duration(p.Policy.Probes)*p.Policy.Interval
}

// ArticleBound is the article's figure, idle + (probes+1)·interval: an upper
// bound. Linux is one interval faster.
func (p Profile) ArticleBound() time.Duration { return p.DetectionTime() + p.Policy.Interval }

// ProbesPerHour is how many probes an hour a thousand living but idle
// connections cost, each drawing an answer of the same size.
func (p Profile) ProbesPerHour() int {
	return int(1000 * time.Hour / max(p.Policy.Idle, p.Policy.Interval))
}

// distance is the number of letters to insert, delete or replace (Levenshtein).
// Names longer than any profile's are far from all of them.
func distance(a, b string) int {
	if len(b) > 64 {
		return len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
