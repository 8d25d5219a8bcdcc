package engine

import (
	"fmt"
	"time"

	"deadpeer/internal/release"
	"deadpeer/internal/verdict"
)

// actionRelease names what a plan does, in outcomes.
const actionRelease = "release"

// Plan is what a release would end, and what it would leave and why. Close it.
type Plan struct {
	// Snapshot holds the verdicts; Act adds the outcomes.
	Snapshot *Snapshot
	// Held says why a path holds all its releases, once per path.
	Held []string

	close func()
	diag  map[uint32]release.Destroyer // by network namespace
	bpf   map[uint32]release.Ender     // likewise, where BPF may be used
	byBPF int                          // connections that were ended so
	items []planned
	via   Via
}

// planned is a connection that Act will end.
type planned struct {
	row  uint32
	item release.Item
	last time.Time     // when the last question was closed, unanswered; zero when none needs to be
	same func() string // why our own side is not what it was then, or ""; nil likewise
}

// lastQuestion is the greatest age of the last unanswered question when a
// connection is ended. It leaves time to look into databases and to wait for
// other sessions to end.
const lastQuestion = 20 * time.Second

// stale says why what was found out of the connection does not count any more.
// What its socket has heard since, release looks at itself.
func (p *planned) stale() error {
	if p.same == nil {
		return nil
	}
	if why := p.same(); why != "" {
		return fmt.Errorf("%s since it was asked: left alone", why)
	}
	if age := time.Since(p.last); age > lastQuestion {
		return fmt.Errorf("last asked %s ago: left alone", verdict.Duration(age))
	}
	return nil
}

// Len is how many connections Act would end.
func (p *Plan) Len() int { return len(p.items) }
