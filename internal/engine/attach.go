package engine

import (
	"fmt"
	"io/fs"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// What attaching does, in outcomes.
const (
	actionAttach = "attach"
	actionDetach = "detach"
)

// AttachRule is a policy and what it is for.
type AttachRule struct {
	Filter  *conn.Filter     // nil for everything that the request selects
	Policy  keepalive.Policy // zero leaves idle, interval, probes as they are; negative the user timeout
	New     bool             // future connections, too
	Future  *conn.Filter     // which of them, nil for all: ports, peers' addresses, family
	Cgroup  string           // of the programs whose future connections: a cgroup v2 path, "" for the whole host
	Unit    string           // or the systemd unit
	Enforce bool             // against the programs' own later calls
}

// FutureError says which part of a filter cannot be told of a connection
// before it exists.
type FutureError struct{ Err error }

// Error names the part.
func (e *FutureError) Error() string { return "filter future connections: " + e.Err.Error() }

// Unwrap gives the part.
func (e *FutureError) Unwrap() error { return e.Err }

// AttachRequest says what policy goes on which connections. A connection has
// the first of the rules that matches it.
type AttachRequest struct {
	Request
	Rules  []AttachRule
	DryRun bool // change nothing: outcomes are planned
}

// Attached is what attaching or detaching came to.
type Attached struct {
	ID       string    // of the attachment; "" when there is none
	Snapshot *Snapshot // the connections, with outcomes
	New      bool      // future connections get the policy, too
	Matched  int
	Changed  int  // done, or planned
	Failed   int  // not done, or not wholly
	Denied   bool // more privilege, or a newer kernel, would have done more
	// InFlight is when data in flight is given up on the connection that has
	// the longest round trip, of those left without a user timeout; nil when
	// there are none.
	InFlight  *forecast.Forecast
	TakenOver []TakenOver // from older attachments, or to be
	Rules     []AttachedRule
	// Slowest is the longest detection time of the idle connections to which the
	// policy leaves some of idle, interval and probes; 0 when there are none.
	Slowest time.Duration
	Unfit   string // what the first outcome about a user timeout means, at length
	// ByValue counts the values put back that are the host's as well. Whether
	// a program had set them itself cannot be told; a later change of the
	// host's will not reach them.
	ByValue int
	Passed  int // left to newer attachments, which have them
	Ended   int // meanwhile: they need nothing any more
}

// TakenOver counts connections of an older attachment that another one has now.
// Detaching that one gives them back what they had before both.
type TakenOver struct {
	ID          string
	Connections int
}

// Attachment is a policy that is on sockets of running programs.
type Attachment struct {
	ID         string
	Program    string // the name of the program that RunProgram became: it has the policy until it ends; "" for an attachment
	At         time.Time
	Rules      []AttachedRule
	Sockets    int    // open now
	Ended      int    // since it was looked last
	Incomplete int    // sockets that a killed deadpeer was just changing
	Half       bool   // attaching or detaching did not come to its end
	New        bool   // future connections get it, too
	Active     bool   // they do: their cgroup is still there
	Given      uint64 // connections that got it when they were made
	NotGiven   uint64 // those of which the kernel refused it, or whose own user timeout would have made it fatal
	Limited    uint64 // calls of programs that would have weakened it
}

// AttachedRule is a rule of an attachment.
type AttachedRule struct {
	Match   string // the filter, "" for everything
	Policy  keepalive.Policy
	New     bool
	Enforce bool
}

// UnknownAttachmentError says that there is no attachment of an ID.
type UnknownAttachmentError struct {
	ID    string
	Known []string
}

// Error names those there are.
func (e *UnknownAttachmentError) Error() string {
	if len(e.Known) == 0 {
		return fmt.Sprintf("no attachment %q, nor any other", e.ID)
	}
	return fmt.Sprintf("no attachment %q: there are %v", e.ID, e.Known)
}

// Unwrap makes it match fs.ErrNotExist.
func (e *UnknownAttachmentError) Unwrap() error { return fs.ErrNotExist }
