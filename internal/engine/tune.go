package engine

import (
	"deadpeer/internal/host"
)

// The words of package host, for those who may not import it.
type (
	// Tuning is what is in force, and what will be.
	Tuning = host.State
	// TuneSetting is one parameter of it.
	TuneSetting = host.Setting
	// TunePersisted is a value at boot, and the line that sets it.
	TunePersisted = host.Persisted
	// TuneChange is what is wanted.
	TuneChange = host.Change
	// TunePart names what a parameter decides.
	TunePart = host.Part
	// TunePlan is what a change does.
	TunePlan = host.Plan
	// TuneFile is what it does to the file for the next boot.
	TuneFile = host.FileChange
	// TuneLoss is a value that will not be in force after the next boot.
	TuneLoss = host.Loss
	// TuneRange is a value that is not taken.
	TuneRange = host.RangeError
	// TuneOriginal is what was put back.
	TuneOriginal = host.Undone
	// TuneUnrecorded is a file of deadpeer's that cannot be put back.
	TuneUnrecorded = host.Unrecorded
	// TuneEntry explains a parameter.
	TuneEntry = host.Entry
)

// The parts of a TuneChange.
const (
	TuneIdle          = host.Idle
	TuneInterval      = host.Interval
	TuneProbes        = host.Probes
	TuneRetries2      = host.Retries2
	TuneSYNRetries    = host.SYNRetries
	TuneOrphanRetries = host.OrphanRetries
)

// ExplainTuning gives what is known of a parameter, on whichever system; of
// all when the name is empty. The error suggests a name that is close.
func ExplainTuning(name string) ([]TuneEntry, error) {
	if name == "" {
		return host.Entries(), nil
	}
	return host.Explain(name)
}

// TuneRequest says which host and what is wanted.
type TuneRequest struct {
	Netns    string // Linux: "current" (default), a path, or a pid
	Change   TuneChange
	Existing bool // re-arm the connections that keep their old expiry
	DryRun   bool // look, and change nothing
}

// Tuned is what was done, or with DryRun would be.
type Tuned struct {
	TunePlan
	Done     bool // the values are set; with DryRun, could be
	Existing Existing
	Notes    []Note
}

// Existing tells of the connections there are already: a keepalive timer that
// is armed does not see a new sysctl.
type Existing struct {
	Looked  bool
	Old     int // keep their old expiry: keepalive by the host's values, armed for longer than its idle time
	Unseen  int // would, but whether their values are the host's cannot be read
	Rearmed int
	Left    map[string]int // by reason: of Old, what was not re-armed
}
