package cli

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/internal/engine"
	"deadpeer/internal/session"
)

func (a *app) sessions() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions [FILTER...]",
		Short: "List database sessions, their connections, what they hold and whom they block",
		Long: `sessions looks into the databases given by --db and ties each session to its
connection on this host: what transaction it holds, what it has locked, whom it
blocks, how long ago the client was heard, and when the kernel would give the
connection up and the lock so fall by itself. It sends nothing to clients and
changes nothing; check --db asks them. Where a pooler or NAT stands between it
says which leg it sees, and guesses no other.

With a filter only the sessions of the selected connections are listed. With
--netns the databases are reached from that network namespace, else from the one
that deadpeer runs in; names are resolved in the latter.
Passwords come from the URL, from a file (--db @FILE, mode 0600), from
DEADPEER_DB, PGPASSWORD, MYSQL_PWD or ISC_PASSWORD, from ~/.pgpass or ~/.my.cnf.`,
		Example: `  sudo deadpeer sessions --db postgres://watch@127.0.0.1/postgres
  sudo deadpeer sessions --db @/root/databases 'heard > 10m'
  sudo deadpeer sessions --db firebird://SYSDBA@127.0.0.1//srv/db/stock.fdb -o json`,
		RunE: func(cmd *cobra.Command, words []string) error {
			req, err := a.request(words)
			if err != nil {
				return err
			}
			req.Settings = true
			saveMemory(os.Getenv)
			snap, err := a.engine().Scan(cmd.Context(), req)
			if err != nil {
				return err
			}
			if len(req.Databases) == 0 {
				for _, h := range snap.Hints {
					a.say("%s", h.Text)
				}
				return usage(errors.New("no database: --db URL"))
			}
			if snap.Told == 0 {
				var e *exit
				if err := a.remark(snap); errors.As(err, &e) && e.code == exitPrivilege {
					return err
				}
				return errors.New("no database told of its sessions")
			}
			if err := a.showSessions(snap); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			return a.remark(snap)
		},
	}
	a.addCommon(cmd, false)
	a.addDatabases(cmd)
	return cmd
}

func (a *app) showSessions(snap *engine.Snapshot) error {
	w := bufio.NewWriterSize(a.stdout, 64<<10)
	var err error
	if a.common.output == "json" || a.common.output == "jsonl" {
		err = sessionsJSON(w, snap, a.common.output == "jsonl")
	} else {
		err = sessionsTable(w, columnsOf(a.stdout), snap, a.common.output == "wide")
	}
	return errors.Join(err, w.Flush())
}

func sessionsTable(w *bufio.Writer, limit int, snap *engine.Snapshot, wide bool) error {
	// The first that fit a narrow terminal say who holds what, and whom up.
	head := []string{"SESSION", "STATE", "TRANSACTION", "LOCKS", "BLOCKS", "HEARD", "FALLS IN", "USER", "DATABASE", "PROGRAM", "PEER", "CONNECTION"}
	if wide {
		head = append(head, "COOKIE", "STATEMENT")
	}
	var lines [][]string
	n, holding, blocked := 0, 0, 0
	for t, c := range snap.Sessions() {
		s := t.Session
		n++
		blocked += s.Blocked
		if len(s.Locks) > 0 {
			holding++
		}
		heard, falls, state, cookie := "-", "-", "-", "-"
		if c != nil {
			heard, falls, state = string(heardCell(nil, nil, c)), string(forecastCell(nil, nil, c)), c.Sock.State.String()
			cookie = strconv.FormatUint(c.Sock.Cookie, 10)
		}
		if t.Leg != "" {
			state = strings.TrimPrefix(state+": "+t.Leg, "-: ")
		}
		transaction := "-"
		if s.InTransaction {
			transaction = span(s.Transaction)
		}
		line := []string{
			sessionName(s), string(s.State), transaction, cmp.Or(strings.Join(s.Locks, ", "), "-"), blocksOf(s), heard, falls,
			cmp.Or(s.User, "-"), shown(s.Database, wide), shown(s.Program, wide), peerOf(s), state,
		}
		if wide {
			line = append(line, cookie, cmp.Or(s.Statement, "-"))
		}
		lines = append(lines, line)
	}
	if n == 0 {
		_, err := fmt.Fprintln(w, "no sessions")
		return err
	}
	if err := writeGrid(w, limit, head, lines); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s, %d with locks, %d blocked\n", count(n, "session"), holding, blocked)
	return err
}

// sessionColumns are those that --db adds to the table of connections.
func sessionColumns() []column {
	name := func(_ *table, b []byte, c *engine.Connection) []byte {
		switch {
		case c.Session == nil:
			return append(b, '-')
		case c.Client != "":
			return append(b, sessionName(c.Session)+" of "+c.Client...)
		}
		return append(b, sessionName(c.Session)...)
	}
	of := func(show func(*session.Session) string) func(*table, []byte, *engine.Connection) []byte {
		return func(_ *table, b []byte, c *engine.Connection) []byte {
			if c.Session == nil {
				return append(b, '-')
			}
			return append(b, show(c.Session)...)
		}
	}
	return []column{
		{"SESSION", name, false},
		{"USER", of(func(s *session.Session) string { return cmp.Or(s.User, "-") }), false},
		{"DATABASE", of(func(s *session.Session) string { return shown(s.Database, false) }), false},
		{"TRANSACTION", of(transactionOf), false},
		{"LOCKS", of(func(s *session.Session) string { return cmp.Or(strings.Join(s.Locks, ", "), "-") }), false},
		{"BLOCKS", of(blocksOf), false},
	}
}

func sessionName(s *session.Session) string { return string(s.Engine) + " " + s.ID }

// shown leaves the folders out of a path, of a database or a program, but not
// from a wide table.
func shown(name string, wide bool) string {
	if !wide {
		name = name[strings.LastIndexAny(name, `/\`)+1:]
	}
	return cmp.Or(name, "-")
}

func peerOf(s *session.Session) string {
	switch {
	case s.Peer.Port() == 0:
		return "-"
	case !s.Peer.Addr().IsValid():
		return fmt.Sprintf("?:%d", s.Peer.Port())
	}
	return s.Peer.String()
}

func transactionOf(s *session.Session) string {
	switch {
	case !s.InTransaction:
		return "-"
	case s.State == session.IdleInTransaction:
		return span(s.Transaction) + ", idle"
	}
	return span(s.Transaction)
}

// blocksOf says whom it blocks, or for whom it waits.
func blocksOf(s *session.Session) string {
	switch {
	case s.Blocked > 0:
		return fmt.Sprintf("%d for %s", s.Blocked, span(s.BlockedFor))
	case len(s.WaitsFor) > 0:
		return "waits for " + strings.Join(s.WaitsFor, ", ")
	case s.State == session.Waiting:
		return "waits"
	}
	return "-"
}

type jsonSession struct {
	Engine       session.Engine `json:"engine"`
	ID           string         `json:"id"`
	User         *string        `json:"user"`
	Database     *string        `json:"database"`
	Program      *string        `json:"program"`
	State        session.State  `json:"state"`
	Statement    *string        `json:"statement"`
	Peer         *string        `json:"peer"`
	Client       *string        `json:"client"` // the program of this host at the other end: the client, or a pooler
	TransactionS *float64       `json:"transaction_age_s"`
	Locks        []string       `json:"locks"`
	WaitsFor     []string       `json:"waits_for"`
	Blocks       []string       `json:"blocks"`
	Blocked      int            `json:"blocked"`
	BlockedForS  *float64       `json:"blocked_for_s"`
}

func sessionOf(s *session.Session, client string) *jsonSession {
	known := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	seconds := func(d time.Duration) *float64 { return new(float64(d.Milliseconds()) / 1000) }
	j := &jsonSession{
		Engine: s.Engine, ID: s.ID, User: known(s.User), Database: known(s.Database), Program: known(s.Program), State: s.State,
		Statement: known(s.Statement), Client: known(client), Locks: append([]string{}, s.Locks...), WaitsFor: append([]string{}, s.WaitsFor...),
		Blocks: append([]string{}, s.Blocks...), Blocked: s.Blocked,
	}
	if s.Peer.Addr().IsValid() {
		j.Peer = new(s.Peer.String())
	}
	if s.InTransaction {
		j.TransactionS = seconds(s.Transaction)
	}
	if s.Blocked > 0 {
		j.BlockedForS = seconds(s.BlockedFor)
	}
	return j
}

type jsonTie struct {
	Session    *jsonSession    `json:"session"`
	Source     string          `json:"source"` // the URL, without password
	Leg        *string         `json:"leg"`
	Connection *jsonConnection `json:"connection"`
}

// sessionsJSON writes one session a line, or all of them in one object.
func sessionsJSON(w *bufio.Writer, snap *engine.Snapshot, lines bool) error {
	e := encoder{snap: snap, procs: map[int32]jsonOwner{}}
	out := newEncoder(w)
	all := struct {
		jsonHead
		Sessions []jsonTie `json:"sessions"`
	}{newJSONHead(snap.TakenAt), []jsonTie{}}
	for t, c := range snap.Sessions() {
		j := jsonTie{Session: sessionOf(t.Session, t.Client), Source: t.Source.String()}
		if t.Leg != "" {
			j.Leg = &t.Leg
		}
		if c != nil {
			jc := e.connection(c)
			jc.Session = nil // it is beside
			j.Connection = &jc
		}
		if !lines {
			all.Sessions = append(all.Sessions, j)
		} else if err := out.Encode(j); err != nil {
			return err
		}
	}
	if lines {
		return nil
	}
	return out.Encode(all)
}
