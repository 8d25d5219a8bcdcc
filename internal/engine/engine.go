// Package engine joins the steps of deadpeer: see the connections, ask the
// kernel whether their peers live, decide on the evidence, act on what is
// proven. It alone imports the packages that ask and act.
//
// A Reader only looks. An Actor also sends questions and ends connections.
//
// Linux; elsewhere every method returns an error matching
// errors.ErrUnsupported. What each step needs is said at its method.
package engine

import (
	"context"
	"sync"
	"time"

	"deadpeer/internal/attach"
	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/session"
	"deadpeer/internal/verdict"
)

// Reader gives snapshots and changes nothing.
type Reader interface {
	// Scan lists connections. It sends nothing.
	Scan(ctx context.Context, r Request) (*Snapshot, error)
}

// Actor asks and acts.
type Actor interface {
	Reader
	// Check asks every selected connection's peer now and gives verdicts.
	Check(ctx context.Context, r Request) (*Snapshot, error)
	// Plan is Check continued until silence has lasted long enough, and
	// says what a release would end and what it would leave.
	Plan(ctx context.Context, r Request) (*Plan, error)
}

var _ Actor = (*Engine)(nil)

// MaxAsking is the most that Request.Rules.Silence and Request.Timeout may come
// to together, beyond which the times of a run would not be told apart.
const MaxAsking = 4 * 24 * time.Hour

// Defaults of Options and Request.
const (
	defaultRate    = 200_000
	defaultTimeout = 30 * time.Second
	defaultRoot    = "/proc"
)

// Options configure an Engine. Zero values mean the defaults.
type Options struct {
	ProcRoot   string            // where procfs is mounted (/proc)
	RuntimeDir string            // for the journal and the lock of asking (defaultRuntimeDir)
	StateDir   string            // for the journal of the host's defaults (/var/lib/deadpeer)
	Root       string            // where the host's files are (/)
	Rate       int               // questions a second at most (200,000)
	NoBPF      bool              // list connections by sock_diag, find owners and settings by procfs and pidfd_getfd
	HookDir    string            // a folder on a bpffs for policies of future connections (deadpeer/hooks on the usual one)
	Step       func(probe.Step)  // called at each step of a question, for tests
	AttachStep func(attach.Step) // called at each step of attaching and detaching, for tests
}

// Request says which connections and what is wanted of them.
type Request struct {
	Netns    string       // "current" (default), "all", a path, or a pid
	Filter   *conn.Filter // nil selects every connection with a peer
	Rules    verdict.Rules
	NoOwners bool          // do not look for the processes that hold the connections
	Settings bool          // read every keepalive setting, also where the pending timer tells already that keepalive is off
	Memory   bool          // socket memory too
	Timeout  time.Duration // of asking, besides the silence a plan waits for (30 s)
	Progress func(Progress)
	// Acting, used by Plan:
	DespiteOutage bool // release although our own side seems gone
	EvenAlive     bool // release what the filter names by cookie, whatever its verdict
	// Databases are looked into while the connections are, and their
	// sessions tied to them. One that does not answer costs no more than 3 s
	// and its own sessions.
	Databases []session.Source
	Via       Via // how Plan.Act ends connections that have a session (auto)

	foresee   bool            // a filter besides Filter looks at forecasts
	alsoNetns []string        // looked into as well, where they can be
	onlyNetns map[uint32]bool // of all of them, those looked into; nil for all
}

// Progress is how far asking has come.
type Progress struct {
	Asked    int // connections asked at least once
	Alive    int
	Silent   int // still being asked
	Dead     int
	Elapsed  time.Duration
	Expected time.Duration // until the last judgement, as far as one can tell
}

// Engine runs the steps. It is safe for concurrent use; runs of asking wait
// for each other.
type Engine struct {
	options Options
	asking  sync.Mutex
	// For tests:
	bpfFrom int    // instead of the constant
	cgroups string // where cgroups of programs are, instead of anywhere
}

// New gives an engine.
func New(o Options) *Engine {
	if o.ProcRoot == "" {
		o.ProcRoot = defaultRoot
	}
	if o.Rate <= 0 {
		o.Rate = defaultRate
	}
	if o.RuntimeDir == "" {
		o.RuntimeDir = defaultRuntimeDir()
	}
	return &Engine{options: o}
}

// Finding is one thing Diagnose looked at.
type Finding struct {
	What   string
	OK     bool
	Detail string
	Mend   string // how to get it, when it is missing

	Optional bool // deadpeer does the same, or nearly, without
	Left     bool // nothing is missing: a deadpeer that was killed has left it
}
