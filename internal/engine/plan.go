package engine

import (
	"deadpeer/internal/release"
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
	items []planned
	via   Via
}

// planned is a connection that Act will end.
type planned struct {
	row  uint32
	item release.Item
}

// Len is how many connections Act would end.
func (p *Plan) Len() int { return len(p.items) }
