package engine

import (
	"os"

	"deadpeer/keepalive"
)

// ProgramRequest says which program is started with which policy.
type ProgramRequest struct {
	Args    []string // the program and its arguments
	Env     []string
	Policy  keepalive.Policy // with idle, interval and probes
	Enforce bool             // against the program's own calls
	// Watch starts a process that cleans up after the program: it runs
	// WatchProgram with the ID on a file that ends when the program has begun.
	// It is no child of the program.
	Watch func(id string, begun *os.File) error
}
