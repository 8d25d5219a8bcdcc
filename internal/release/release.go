// Package release ends connections whose peer is proven gone, and no others.
// It decides what may be ended (Decide, Hold: pure) and ends it (Act: compares
// once more what every socket has heard, by cookie, and leaves alone what has
// heard anything since it was first asked).
//
// Deciding runs on every OS. Ending needs what its Destroyer needs: with
// sockdiag, Linux with CONFIG_INET_DIAG_DESTROY and CAP_NET_ADMIN.
package release

import (
	"fmt"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/verdict"
)

// The breaker: our own side may be what is gone.
const (
	// BreakerPeers is how many distinct peer addresses make the share of dead
	// ones tell something. Connections of one address, as behind a NAT, share
	// what may be gone beyond this host, so they count once.
	BreakerPeers = 10
	// BreakerShare is the share of dead peer addresses over one next hop above which
	// the path, not the peers, is held to be gone.
	BreakerShare = 0.6
)

// Candidate is a connection that may be released.
type Candidate struct {
	Verdict   conn.Verdict
	Why       verdict.Why
	Silence   time.Duration // for which questions went unanswered without a break
	Protected string        // why it is never touched; "" when it may be
	Named     bool          // the filter names its cookie: protection does not count
	EvenAlive bool          // asked for by cookie whatever its verdict
	Held      string        // why its path holds all releases; "" when it does not
}

// Decide says whether the connection may be ended now, and if not, why not.
func Decide(c Candidate, r verdict.Rules) (ok bool, why string) {
	r = r.WithDefaults()
	switch {
	case c.Protected != "" && !c.Named:
		return false, "protected: " + c.Protected
	case c.EvenAlive && c.Named:
		return true, ""
	case c.Verdict != conn.Dead:
		return false, "its verdict is " + c.Verdict.String()
	case c.Why == verdict.WhyReset, c.Why == verdict.WhyGaveUp:
		return false, "it has ended: " + verdict.Judgement{Why: c.Why}.Reason(verdict.Evidence{})
	case c.Silence < r.Silence:
		return false, fmt.Sprintf("silent for %s, release needs %s (--silence)", verdict.Duration(c.Silence), verdict.Duration(r.Silence))
	case c.Held != "":
		return false, "held: " + c.Held
	}
	return true, ""
}

// PathState is what is known of one interface and next hop when acting.
type PathState struct {
	Name  string // interface and next hop, for messages
	Gone  string // why our own side seems gone; "" when it does not
	Asked int    // distinct peer addresses asked over it
	Dead  int    // of those, with nothing but dead connections
}

// Hold is the breaker: why nothing may be released over that path, or "".
func (p PathState) Hold() string {
	switch {
	case p.Gone != "":
		return p.Gone
	case p.Asked >= BreakerPeers && float64(p.Dead) > BreakerShare*float64(p.Asked):
		return fmt.Sprintf("%d of %d peer addresses over %s are silent: our own side may be what is gone", p.Dead, p.Asked, p.Name)
	}
	return ""
}
