// Package demo acts out the job of deadpeer on real sockets: a client takes a
// row lock, its link is cut without a word, it comes back from another address
// and is locked out by its own phantom. Then the phantom is found, proven dead
// and released, and nobody else notices.
//
// The scene is five hosts in throw-away network namespaces (package testnet).
// The lock server is a process of its own that knows nothing of deadpeer. The
// acting ([Run]) tells an observer of every step; [Story] puts that in words.
//
// Linux only; elsewhere errors match errors.ErrUnsupported. Needs root
// (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW), or unprivileged user
// namespaces, which [Enter] makes use of.
//
//	story := &demo.Story{Out: os.Stdout}
//	result, err := demo.Run(ctx, demo.Options{Observe: story.Observe})
package demo

import (
	"net/netip"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/wire"
	"deadpeer/keepalive"
)

// LockServerCommand is the word that, after "demo", makes this program the
// lock server: the program that calls [Run] is started again with "demo", this
// and an address, and must then call [ServeLocks].
const LockServerCommand = "lockserver"

// DefaultSilence is how long the demo has the phantom be silent before it is
// released, far less than the 60 s of a real host.
const DefaultSilence = 3 * time.Second

// Bystanders is how many clients hold locks of their own and must not notice.
const Bystanders = 5

// The lock that the story is about, and the filter that finds its server.
const (
	contested = "items:7"
	port      = 3050
)

// What the lock server says.
const (
	answerOK       = "OK"
	answerConflict = "lock conflict on update"
	answerBye      = "BYE"
)

// Options configure Run. Zero values mean the defaults.
type Options struct {
	Silence  time.Duration         // unbroken silence the release waits for (3 s)
	Trace    bool                  // watch the wire while peers are asked
	Observe  func(Step, *Result)   // called at every step, by the goroutine that called Run
	Progress func(engine.Progress) // called while peers are asked, by that goroutine too
}

// Step is a step of the story.
type Step uint8

// The steps, in their order.
const (
	Staged    Step = iota // hosts, links and the lock server are there
	Locked                // everybody holds a lock
	Cut                   // the first client's link is dead
	Conflict              // it came back, and its phantom has the lock
	Foreseen              // what the kernel alone would do is known
	Asking                // the check begins
	Judged                // the check has its verdicts
	Releasing             // the release begins
	Released              // the phantom is gone
	Regained              // the client has its lock, and the bystanders theirs
	Over                  // all came out right and all is removed
)

// Result is what happened. Times count from the moment the link was cut; a
// field means something once its step was reached.
type Result struct {
	Reached Step // the last step

	Server    netip.AddrPort // Staged
	ServerPID int

	Phantom netip.AddrPort // Locked: the client's first address

	Back     netip.AddrPort // Conflict: its second one
	Answer   string         // what the lock server said to it
	Conflict time.Duration

	State         conn.State // Foreseen: of the phantom
	Owner         string     // the program that holds the socket
	Settings      keepalive.Settings
	Forecast      string        // when the kernel gives up: "never", or a time
	WithKeepAlive time.Duration // with SO_KEEPALIVE on and the rest as it is

	Asked    time.Duration // Asking
	Judged   time.Duration // Judged
	Verdicts []Verdict     // the phantom's first, then by address

	// Wire is what was seen on the wire, of the phantom and of the client that
	// came back: at Judged during the check, at Released since then. Empty
	// unless Options.Trace.
	Wire []Sight

	Silence  time.Duration // Releasing: what the release waits for
	Released time.Duration // Released
	Seen     string        // the lock server's log line about it

	Regained time.Duration // Regained
	Alive    int           // bystanders that hold their locks and answer
}

// Sight is a probe and what became of it, or an end, as seen on the wire.
type Sight struct {
	At   time.Duration // since the cut: when the probe was sent, or the end came
	Peer netip.AddrPort
	Kind wire.Kind
	N    int           // the how many-th probe since the peer was last heard
	RTT  time.Duration // of an answer
}

// Verdict is what the check found of one connection.
type Verdict struct {
	Peer       netip.AddrPort
	Verdict    conn.Verdict
	Reason     string
	Unanswered int           // questions
	Silence    time.Duration // since the first of them
}

// Report is a Result as the JSON contract spells it. What was not reached is
// null.
type Report struct {
	Schema              int     `json:"schema"`
	ConflictSeen        bool    `json:"conflict_seen"`
	BystandersAlive     *int    `json:"bystanders_alive"`
	PhantomVerdict      *string `json:"phantom_verdict"`
	PhantomForecast     *string `json:"phantom_forecast"`
	AskedToVerdictMS    *int64  `json:"asked_to_verdict_ms"`
	ReleasedAfterMS     *int64  `json:"released_after_ms"`
	LockRegained        bool    `json:"lock_regained"`
	LockRegainedAfterMS *int64  `json:"lock_regained_after_ms"`
}

// Report gives the result for JSON. released_after_ms and
// lock_regained_after_ms count from the cut.
func (r *Result) Report() Report {
	j := Report{Schema: 1, ConflictSeen: r.Reached >= Conflict, LockRegained: r.Reached >= Regained}
	if r.Reached >= Foreseen {
		j.PhantomForecast = &r.Forecast
	}
	if len(r.Verdicts) > 0 && r.Verdicts[0].Peer == r.Phantom {
		j.PhantomVerdict = new(r.Verdicts[0].Verdict.String())
		j.AskedToVerdictMS = new((r.Judged - r.Asked).Milliseconds())
	}
	if r.Reached >= Released {
		j.ReleasedAfterMS = new(r.Released.Milliseconds())
	}
	if r.Reached >= Regained {
		j.LockRegainedAfterMS = new(r.Regained.Milliseconds())
		j.BystandersAlive = &r.Alive
	}
	return j
}
