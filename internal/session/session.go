// Package session tells what a database holds for a connection: the session
// behind it, its transaction, its locks and whom it blocks; and ends that
// session in the database's own way.
//
//	source, err := session.Parse("postgres://watch@127.0.0.1/postgres", os.Getenv)
//	db, err := session.Open(source, session.Options{})
//	defer db.Close()
//	view, err := db.Look(ctx) // one bounded query, joined by Session.Peer
//
// Firebird 3 and later (firebird://), PostgreSQL 9.6 and later (postgres://),
// MariaDB 10 and MySQL 8 (mariadb://, mysql://), and ZEO servers (zeo://),
// which tell of no peer and end no session. Runs on every OS. What the
// database must allow is said at Look and End; what it does not tell is a
// Note that names the GRANT.
//
// All text of a Session comes from the database, and much of it from its
// clients: it has passed conn.Printable and is bounded in length.
package session

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"deadpeer/internal/conn"
)

// Engine is a kind of database, as the JSON contract spells it.
type Engine string

// The engines.
const (
	Firebird   Engine = "firebird"
	PostgreSQL Engine = "postgresql"
	MySQL      Engine = "mysql"
	MariaDB    Engine = "mariadb"
	ZEO        Engine = "zeo"
)

// State is what a session is doing.
type State string

// The states. What an engine calls them differs.
const (
	Active            State = "active"              // runs a statement
	Waiting           State = "waiting"             // for a lock of another session
	Idle              State = "idle"                // no transaction
	IdleInTransaction State = "idle in transaction" // holds one, and runs nothing
)

// Session is what a database tells of one client.
type Session struct {
	Engine    Engine
	ID        string // unique in the server while the session lasts
	User      string
	Database  string
	Program   string // as the client calls itself
	Statement string // the present or last one, its beginning
	State     State
	// Peer is where the client connects from, as the database sees it; a
	// mapped IPv4 address is unmapped. It is zero when the client came
	// through a local socket. Its address alone is invalid when the server
	// resolves names and so tells a name and a port.
	Peer netip.AddrPort
	// InTransaction: for Transaction.
	InTransaction bool
	Transaction   time.Duration
	// Locks are the tables it has changed or locked, "table" or "table row",
	// as far as the engine tells.
	Locks []string
	// WaitsFor and Blocks are IDs of the sessions it waits for and that wait
	// for it. Blocked is their number, also where the engine gives no IDs,
	// BlockedFor how long the first of them has been waiting.
	WaitsFor   []string
	Blocks     []string
	Blocked    int
	BlockedFor time.Duration

	waited time.Duration // how long it has been waiting itself
	birth  string        // what tells it from another one with the same ID, in the engine's words
	origin string        // the peer, in the engine's words
}

// Key names the session among all of its engine: two looks that give the same
// key, of one server or by several URLs of it, have seen the same session.
func (s *Session) Key() string { return s.ID + "\x00" + s.birth + "\x00" + s.origin }

// View is what one look at a database showed.
type View struct {
	Server   string // name and version
	Port     uint16 // TCP port the server listens on, by its own word where it gives it
	Self     *Session
	Sessions []Session // but our own; by ID
	Notes    []Note

	byID    map[string]int
	indexed int // how many sessions byID knows
}

// Note is what the database did not tell, or did not do, and why.
type Note struct {
	Text      string
	Privilege bool // a GRANT, named in Text, mends it
}

// Find gives the session with that ID, or nil.
func (v *View) Find(id string) *Session {
	v.index()
	if i, ok := v.byID[id]; ok {
		return &v.Sessions[i]
	}
	return nil
}

func (v *View) index() {
	if v.indexed == len(v.Sessions) {
		return
	}
	v.byID, v.indexed = make(map[string]int, len(v.Sessions)), len(v.Sessions)
	for i := range v.Sessions {
		v.byID[v.Sessions[i].ID] = i
	}
}

// sort puts the sessions in the order of their IDs, numbers by value.
func (v *View) sort() {
	slices.SortStableFunc(v.Sessions, func(a, b Session) int {
		return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), strings.Compare(a.ID, b.ID))
	})
	v.indexed = -1
	v.index()
}

// Has reports whether the view still shows that very session.
func (v *View) Has(s *Session) bool {
	t := v.Find(s.ID)
	return t != nil && t.Key() == s.Key()
}

// Limits on what a database may make us hold.
const (
	maxSessions  = 20_000
	maxName      = 128 // bytes of a name
	maxStatement = 200 // bytes of a statement
	maxLocks     = 20  // named of one session
)

// invertWaits fills Blocks from WaitsFor.
func (v *View) invertWaits() {
	for i := range v.Sessions {
		waiter := &v.Sessions[i]
		slices.Sort(waiter.WaitsFor)
		waiter.WaitsFor = slices.Compact(waiter.WaitsFor)
		for _, id := range waiter.WaitsFor {
			if holder := v.Find(id); holder != nil && holder != waiter {
				holder.Blocks = append(holder.Blocks, waiter.ID)
				holder.Blocked++
				holder.BlockedFor = max(holder.BlockedFor, waiter.waited)
			}
		}
	}
}

// text makes what a database told safe and short: control characters are
// escaped, runs of white space are one blank.
func text(s string, limit int) string {
	cut := false
	const widest = 4           // bytes of a character
	if len(s) > widest*limit { // before the work, which is proportional
		s, cut = s[:widest*limit], true
	}
	s = conn.Printable(strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " "))
	if len(s) > limit {
		s, cut = s[:limit], true
	}
	if cut {
		return strings.ToValidUTF8(s, "") + "…"
	}
	return s
}

// addLock books a lock once, and no more than maxLocks.
func (s *Session) addLock(lock string) {
	lock = text(lock, maxName)
	switch {
	case lock == "" || slices.Contains(s.Locks, lock):
	case len(s.Locks) < maxLocks:
		s.Locks = append(s.Locks, lock)
	case len(s.Locks) == maxLocks:
		s.Locks = append(s.Locks, "…")
	}
}

// millis is a time span that a database gave in milliseconds; clocks that
// were set back make none negative.
func millis(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Millisecond)
	return time.Duration(min(max(n, 0), most)) * time.Millisecond
}
