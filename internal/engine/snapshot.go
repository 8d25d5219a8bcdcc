package engine

import (
	"iter"
	"sync"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/session"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/verdict"
	"deadpeer/keepalive"
)

// Snapshot is what a run saw and judged. It is not changed afterwards.
type Snapshot struct {
	TakenAt time.Time
	Asked   bool     // by Check or Plan
	Notes   []Note   // what could not be seen or done, for people
	Hints   []Hint   // databases that could be looked into
	Told    int      // databases that told of their sessions
	How     []string // by what means things were found out, for the curious

	rules      verdict.Rules
	table      table
	order      []uint32     // rows shown
	owners     []conn.Owner // of connections that have several
	settings   []setting    // each that was met, once
	processes  processes
	memory     []sockdiag.Memory
	fails      []verdict.Fail // what the controls of each path tell
	kernel     kernel
	attached   map[conn.ID]bool // sockets whose policy is ours
	outcomes   map[uint32]Outcome
	namespaces map[uint32]string // what each was found by

	ties       []Tie
	tieAt      map[uint32]int // by row
	everything bool           // the filter selects every connection
}

// Note is something a run could not see or do.
type Note struct {
	Text      string
	Privilege bool // more privilege or a newer kernel would help: exit code 4
	Database  bool // a database that was asked for by name did not tell: exit code 3, or 4 with Privilege
}

// Connection is one connection of a snapshot, for showing.
type Connection struct {
	Sock           *conn.Sock
	Owners         []conn.Owner
	Settings       keepalive.Settings
	Known          bool // Settings were read
	Origin         Origin
	KeepAliveKnown bool // at least Settings.KeepAlive is known
	Memory         *sockdiag.Memory
	Evidence       verdict.Evidence
	Judgement      verdict.Judgement
	Outcome        *Outcome         // nil unless something was done, or planned
	Session        *session.Session // nil unless a database was looked into and tells of one
	Client         string           // as in Tie

	snap        *Snapshot
	read        reading
	outcome     Outcome // what Outcome points to
	forecast    forecast.Forecast
	foreseen    bool // forecast was made
	foreseeable bool
}

// Process tells of a process that owns the connection.
func (c *Connection) Process(pid int32) *conn.Process { return c.snap.Process(pid) }

// TakenAt is that of the snapshot: forecasts count from it.
func (c *Connection) TakenAt() time.Time { return c.snap.TakenAt }

// Namespace is what its network namespace was found by: a path, "pid N" or
// "current".
func (c *Connection) Namespace() string { return c.snap.namespaces[c.Sock.NetNS] }

// Reason says in words why the verdict is what it is.
func (c *Connection) Reason() string { return c.Judgement.Reason(c.Evidence) }

// processes are those that own connections. They are safe for concurrent use.
type processes struct {
	mu    sync.RWMutex
	known map[int32]*conn.Process
}

// find gives nil for one that nobody has looked at.
func (p *processes) find(pid int32) *conn.Process {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.known[pid]
}

func (p *processes) add(one *conn.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[int32]*conn.Process{}
	}
	p.known[one.PID] = one
}

// Outcome is what was done to a connection.
type Outcome struct {
	Action string // "release", "attach" or "detach"
	Via    Via    // how, where databases were looked into: ViaDatabase or ViaSocket
	Done   bool
	Error  string // why not, or what was left out; "" when nothing was tried yet
	// Planned is what the connection would have after a dry run's attaching: what
	// the policy leaves alone and could not be read is zero, the user timeout
	// negative. Else nil.
	Planned *keepalive.Policy
}

// Summary counts a snapshot.
type Summary struct {
	Connections int
	ByVerdict   [conn.VerdictCount]int
	Blind       int           // forecast: never
	Unforeseen  int           // no forecast: values unknown, or no rule for the situation
	Worst       time.Duration // the longest time from the last segment to giving up, among those idle that have one
	Released    int           // ended by us
	Planned     int           // would be ended
	Left        int           // dead, but left alone
}

// Add counts one connection.
func (s *Summary) Add(c *Connection) {
	s.Connections++
	s.ByVerdict[c.Judgement.Verdict]++
	if conn.Connections.Has(c.Sock.State) && c.Sock.State != conn.TimeWait {
		switch f, known := c.Forecast(); {
		case !known:
			s.Unforeseen++
		case !f.GivesUp:
			s.Blind++
		case f.Situation == forecast.SituationIdle:
			s.Worst = max(s.Worst, forecast.DetectionTime(c.Settings.Policy))
		}
	}
	switch {
	case c.Outcome == nil, c.Outcome.Action != actionRelease: // Attached counts the others
	case c.Outcome.Done:
		s.Released++
	case c.Outcome.Error == "":
		s.Planned++
	default:
		s.Left++
	}
}

// Len is the number of connections.
func (s *Snapshot) Len() int { return len(s.order) }

// All yields every connection. The Connection is the caller's to keep only
// until the next one.
func (s *Snapshot) All() iter.Seq[*Connection] {
	return func(yield func(*Connection) bool) {
		var c Connection
		for _, i := range s.order {
			s.fill(&c, s.table.at(i))
			if !yield(&c) {
				return
			}
		}
	}
}

// Process tells of a process that owns connections of this snapshot.
func (s *Snapshot) Process(pid int32) *conn.Process { return s.processes.find(pid) }

// fill derives everything shown of a row.
func (s *Snapshot) fill(c *Connection, r *row) {
	*c = Connection{snap: s, read: r.read, Sock: &r.sock, Owners: s.ownersOf(r), Known: r.settings != 0}
	if c.Known {
		known := s.settings[r.settings-1]
		c.Settings, c.Origin, c.KeepAliveKnown = known.Settings, known.origin, true
	} else {
		c.Settings.KeepAlive, c.KeepAliveKnown = keepaliveByTimer(&r.sock)
	}
	if s.attached[r.sock.ID()] {
		c.Origin = OriginDeadpeer
	}
	if s.memory != nil {
		c.Memory = &s.memory[r.number]
	}
	c.Evidence = s.evidence(r)
	if s.Asked {
		a := s.table.asking(r)
		c.Judgement = verdict.Judgement{Verdict: a.verdict, Why: a.why, FalseChance: a.falseChance()}
	} else {
		c.Judgement = verdict.Glance(c.Evidence, s.rules)
	}
	if t := s.tieOf(r.number); t != nil {
		c.Session, c.Client = t.Session, t.Client
	}
	if o, ok := s.outcomes[r.number]; ok {
		c.outcome = o
		c.Outcome = &c.outcome
	}
}

func (s *Snapshot) ownersOf(r *row) []conn.Owner {
	if r.ownerN > 1 {
		return s.owners[r.owners:][:r.ownerN]
	}
	return r.owner[:r.ownerN]
}

// keepaliveByTimer tells from the pending timer whether keepalive is on: an
// idle connection without any timer has it off, one with a keepalive timer
// has it on. A retransmission or persist timer hides the answer.
func keepaliveByTimer(s *conn.Sock) (on, known bool) {
	switch {
	case s.State != conn.Established && s.State != conn.CloseWait:
		return false, false
	case s.Timer == conn.TimerKeepalive:
		return true, true
	case s.Timer == conn.TimerNone && s.HasInfo:
		return false, true
	}
	return false, false
}
