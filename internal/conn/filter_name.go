package conn

import "slices"

// synchronized is ss's group: connected and past SYN-SENT.
const synchronized = Connections &^ (1 << SynSent)

// stateNamed lists the words after state and exclude. The first 11 are the
// canonical names of one state each, the groups come next, then other
// spellings: those of ss, of old ss, and what State.String prints.
var stateNamed = [...]struct {
	name string
	set  States
}{
	{"established", 1 << Established},
	{"syn-sent", 1 << SynSent},
	{"syn-recv", synReceived},
	{"fin-wait-1", 1 << FinWait1},
	{"fin-wait-2", 1 << FinWait2},
	{"time-wait", 1 << TimeWait},
	{"closed", closed},
	{"close-wait", 1 << CloseWait},
	{"last-ack", 1 << LastAck},
	{"listening", 1 << Listen},
	{"closing", 1 << Closing},
	{"all", AllStates},
	{"connected", Connections},
	{"synchronized", synchronized},
	{"bucket", bucket},
	{"big", AllStates &^ bucket},
	{"fin-wait1", 1 << FinWait1},
	{"fin-wait2", 1 << FinWait2},
	{"syn-rcv", synReceived},
	{"syn-received", synReceived},
	{"new-syn-recv", synReceived},
	{"unconnected", closed},
	{"close", closed},
	{"listen", 1 << Listen},
	{"bound-inactive", closed},
	{"bound", closed},
}

const (
	singleStates = 11
	listedStates = 16
)

func stateByName(name string) (States, bool) {
	for _, s := range stateNamed {
		if s.name == name {
			return s.set, true
		}
	}
	return 0, false
}

// stateWords are the canonical names and the groups.
func stateWords() (words []string) {
	for _, s := range stateNamed[:listedStates] {
		words = append(words, s.name)
	}
	return words
}

// valueNames are the words a field of names can be compared with.
func valueNames(f field) (names []string) {
	switch f {
	case fieldVerdict:
		for _, v := range Verdicts() {
			names = append(names, v.String())
		}
	case fieldTimer:
		for t := TimerNone; t <= TimerPersist; t++ {
			names = append(names, t.String())
		}
	case fieldFamily:
		names = []string{"ipv4", "ipv6", "inet", "inet6"}
	}
	return names
}

func valueByName(f field, name string) uint64 {
	i := slices.Index(valueNames(f), name)
	switch f {
	case fieldVerdict:
		return uint64(Verdicts()[i])
	case fieldTimer:
		return uint64(i)
	default:
		return uint64([]Family{IPv4, IPv6}[i%2])
	}
}
