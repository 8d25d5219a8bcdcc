package engine

import (
	"fmt"
	"iter"
	"strings"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/session"
)

// Via is how a connection with a database session is released.
type Via string

// The ways. The zero Via is ViaAuto.
const (
	ViaAuto     Via = "auto"     // the database's own way, and when that fails the socket
	ViaDatabase Via = "database" // only the database's own way
	ViaSocket   Via = "socket"   // only the socket; the database then rolls back by itself
)

// Tie is a database session and the connection behind it, as far as there is
// one on this host.
type Tie struct {
	Source  session.Source
	Session *session.Session
	Leg     string // what stands between, or why no connection was found; "" for a plain tie
	Client  string // the program of this host at the other end: the client, or a pooler; "" when there is none

	look   *look
	row    uint32
	tied   bool // row is its connection
	shared bool // other sessions have the same peer: none is ended through the database
}

// look is what one database showed.
type look struct {
	db   *session.DB
	view *session.View
	err  error
	took time.Duration
	home map[uint32]bool // network namespaces where its server's end of connections is
}

// Hint is a database server of this host that nobody was asked to look into.
type Hint struct {
	Text string
	Dead bool // one of its connections is dead
}

// Sessions yields the sessions that are shown: those of selected connections,
// and where the run selected all connections, those without one too. The
// Connection is nil or the caller's until the next one.
func (s *Snapshot) Sessions() iter.Seq2[*Tie, *Connection] {
	return func(yield func(*Tie, *Connection) bool) {
		shown := make(map[uint32]bool, len(s.order))
		for _, i := range s.order {
			shown[i] = true
		}
		var c Connection
		for i := range s.ties {
			t := &s.ties[i]
			switch {
			case t.tied && shown[t.row]:
				s.fill(&c, s.table.at(t.row))
				if !yield(t, &c) {
					return
				}
			case !t.tied && s.everything:
				if !yield(t, nil) {
					return
				}
			}
		}
	}
}

// tieOf gives what is known of row i's session, or nil.
func (s *Snapshot) tieOf(i uint32) *Tie {
	if at, ok := s.tieAt[i]; ok {
		return &s.ties[at]
	}
	return nil
}

// serverScheme tells from its name what kind of database a program serves.
func serverScheme(comm string) string {
	switch comm {
	case "postgres":
		return "postgres"
	case "mysqld":
		return "mysql"
	case "mariadbd":
		return "mariadb"
	case "firebird", "fb_smp_server", "fb_inet_server":
		return "firebird"
	case "runzeo":
		return "zeo"
	}
	return ""
}

// hinter finds the database servers among the owners of connections.
type hinter struct {
	snap    *Snapshot
	schemes map[int32]string // by pid
	pid     int32            // the last
	scheme  string           // of it
	at      map[server]int   // in Snapshot.Hints
}

type server struct {
	scheme string
	port   uint16
}

func newHinter(s *Snapshot) *hinter {
	return &hinter{snap: s, schemes: map[int32]string{}, at: map[server]int{}}
}

// look looks at one connection.
func (h *hinter) look(row *row) {
	const ephemeral = 32768 // a server's own connections elsewhere begin there (ip_local_port_range)
	if row.sock.LocalPort >= ephemeral {
		return
	}
	s := h.snap
	for _, o := range s.ownersOf(row) {
		if o.PID != h.pid { // neighbours are alike
			h.pid, h.scheme = o.PID, h.schemeOf(o.PID)
		}
		if h.scheme == "" {
			continue
		}
		key := server{h.scheme, row.sock.LocalPort}
		n, known := h.at[key]
		if !known {
			n = len(s.Hints)
			h.at[key] = n
			s.Hints = append(s.Hints, Hint{Text: fmt.Sprintf("%s[%d] is a database: --db %s://USER@%s/%s tells what its sessions hold",
				conn.Printable(s.Process(o.PID).Comm), o.PID, h.scheme, row.sock.Local(), hintDatabase(h.scheme))})
		}
		if s.Asked && s.table.asking(row).verdict == conn.Dead {
			s.Hints[n].Dead = true
		}
	}
}

func (h *hinter) schemeOf(pid int32) string {
	scheme, known := h.schemes[pid]
	if p := h.snap.Process(pid); !known && p != nil {
		scheme = serverScheme(p.Comm)
		h.schemes[pid] = scheme
	}
	return scheme
}

func hintDatabase(scheme string) string {
	switch scheme {
	case "firebird":
		return "/PATH/OF/DATABASE.fdb"
	case "postgres":
		return "postgres"
	}
	return ""
}

// describe names a process for messages.
func (s *Snapshot) describe(owners []conn.Owner) string {
	if len(owners) == 0 {
		return "a program that we may not see"
	}
	name := ""
	if p := s.Process(owners[0].PID); p != nil {
		name = conn.Printable(p.Comm)
	}
	return strings.TrimSpace(fmt.Sprintf("%s[%d]", name, owners[0].PID))
}
