package session

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"

	"github.com/nakagami/firebirdsql"

	firebirdbeat "deadpeer/heartbeat/firebird"
)

type firebird struct{ source Source }

func firebirdConnector(s Source, dial dialer) (driver.Connector, error) {
	query := url.Values{
		// Text of clients in a wrong charset must not make a look fail.
		"charset": {"NONE"},
		// A server that hangs in a statement is hung up on.
		"cancel_hard_drop": {"true"}, "cancel_hard_drop_grace": {"200"},
	}
	maps.Copy(query, s.options)
	u := url.URL{
		Scheme: "firebird", User: url.UserPassword(s.user, string(s.password)), Host: s.address(),
		Path: "/" + s.database, RawQuery: query.Encode(),
	}
	if dial.within != nil {
		return firebirdWithin{dial, u}, nil
	}
	return firebirdbeat.Connector(u.String())
}

// firebirdWithin connects from another network namespace: the driver takes no
// dialer.
type firebirdWithin struct {
	dial dialer
	url  url.URL
}

// Connect logs in.
func (f firebirdWithin) Connect(ctx context.Context) (c driver.Conn, err error) {
	err = f.dial.each(ctx, f.url.Host, func(literal string) error {
		at := f.url
		at.Host = literal
		connector, err := firebirdbeat.Connector(at.String())
		if err == nil {
			c, err = connector.Connect(ctx)
		}
		return err
	})
	return c, err
}

// Driver is not asked for.
func (f firebirdWithin) Driver() driver.Driver { return nil }

// The monitoring tables are one snapshot for all statements of a transaction
// (Firebird 3.0 Language Reference, Appendix D).
const (
	firebirdSessions = `SELECT a.MON$ATTACHMENT_ID, CAST(a.MON$TIMESTAMP AS VARCHAR(64)), a.MON$USER, a.MON$ATTACHMENT_NAME,
  a.MON$REMOTE_PROCESS, a.MON$REMOTE_ADDRESS, a.MON$STATE, a.MON$ATTACHMENT_ID - CURRENT_CONNECTION
FROM MON$ATTACHMENTS a WHERE a.MON$SYSTEM_FLAG = 0`
	firebirdTransactions = `SELECT t.MON$ATTACHMENT_ID, t.MON$TRANSACTION_ID, CAST(DATEDIFF(MILLISECOND FROM t.MON$TIMESTAMP TO CURRENT_TIMESTAMP) AS BIGINT)
FROM MON$TRANSACTIONS t ORDER BY t.MON$TRANSACTION_ID`
	firebirdRunning = `SELECT s.MON$ATTACHMENT_ID, CAST(DATEDIFF(MILLISECOND FROM s.MON$TIMESTAMP TO CURRENT_TIMESTAMP) AS BIGINT)
FROM MON$STATEMENTS s WHERE s.MON$STATE = 1`
	// What a transaction has changed or locked, by table.
	firebirdWritten = `SELECT t.MON$ATTACHMENT_ID, t.MON$TRANSACTION_ID, ts.MON$TABLE_NAME
FROM MON$TRANSACTIONS t
JOIN MON$TABLE_STATS ts ON ts.MON$STAT_ID = t.MON$STAT_ID AND ts.MON$STAT_GROUP = 2
JOIN MON$RECORD_STATS r ON r.MON$STAT_ID = ts.MON$RECORD_STAT_ID
WHERE r.MON$RECORD_INSERTS + r.MON$RECORD_UPDATES + r.MON$RECORD_DELETES + r.MON$RECORD_LOCKS > 0`
	// Running statements that have met a record of a transaction that has
	// not ended.
	firebirdWaits = `SELECT s.MON$ATTACHMENT_ID, ts.MON$TABLE_NAME
FROM MON$STATEMENTS s
JOIN MON$TABLE_STATS ts ON ts.MON$STAT_ID = s.MON$STAT_ID AND ts.MON$STAT_GROUP = 3
JOIN MON$RECORD_STATS r ON r.MON$STAT_ID = ts.MON$RECORD_STAT_ID
WHERE s.MON$STATE = 1 AND r.MON$RECORD_WAITS > 0`
	firebirdStatements = `SELECT s.MON$ATTACHMENT_ID, CAST(SUBSTRING(s.MON$SQL_TEXT FROM 1 FOR 200) AS VARCHAR(200) CHARACTER SET OCTETS)
FROM MON$STATEMENTS s ORDER BY s.MON$STATE, s.MON$STATEMENT_ID`
	firebirdServer = `SELECT RDB$GET_CONTEXT('SYSTEM', 'ENGINE_VERSION'), TRIM(CURRENT_USER), TRIM(CURRENT_ROLE), TRIM(d.MON$OWNER)
FROM MON$DATABASE d`
)

func (f firebird) look(ctx context.Context, c *sql.Conn) (*View, error) {
	tx, err := c.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	l := firebirdLook{ctx: ctx, tx: tx, view: &View{Port: f.source.port}, writers: map[string][]int64{}, writes: map[int64]bool{}, source: f.source, sessionOf: map[int64]int64{}}
	for _, step := range []func() error{l.server, l.sessions, l.written, l.transactions, l.running, l.waits} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	l.lockTable()
	l.statements()
	if l.partial {
		l.view.Notes = append(l.view.Notes, Note{fmt.Sprintf("%s shows sessions of %s only: GRANT RDB$ADMIN TO %s, and log in with ?role=RDB$ADMIN",
			f.source, text(f.source.user, maxName), quoteName(f.source.user)), true})
	}
	l.view.invertWaits()
	return l.view, nil
}

// firebirdLook is one look, in one transaction.
type firebirdLook struct {
	ctx     context.Context
	tx      *sql.Tx
	view    *View
	partial bool
	writers map[string][]int64 // sessions that have changed a table and not ended
	writes  map[int64]bool     // transactions that have changed anything
	unclear bool               // several sessions may be the one that is waited for

	source    Source
	sessionOf map[int64]int64 // by transaction
}

func (l *firebirdLook) rows(query string, visit func(scan func(...any) error) error) error {
	return rows(l.ctx, l.tx, query, visit)
}

func (l *firebirdLook) find(id int64) *Session { return l.view.Find(strconv.FormatInt(id, 10)) }

func (l *firebirdLook) server() error {
	var version, user, role, owner sql.NullString
	if err := l.tx.QueryRowContext(l.ctx, firebirdServer).Scan(&version, &user, &role, &owner); err != nil {
		return err
	}
	l.view.Server = "Firebird " + text(version.String, maxName)
	l.partial = user.String != "SYSDBA" && role.String != "RDB$ADMIN" && user.String != owner.String
	return nil
}

func (l *firebirdLook) sessions() error {
	return l.rows(firebirdSessions, func(scan func(...any) error) error {
		var id, other int64
		var birth, user, database, program, address sql.NullString
		var state sql.NullInt64
		if err := scan(&id, &birth, &user, &database, &program, &address, &state, &other); err != nil {
			return err
		}
		s := Session{
			Engine: Firebird, ID: strconv.FormatInt(id, 10), User: text(user.String, maxName), Database: text(database.String, maxName),
			Program: text(program.String, maxName), State: Idle, birth: birth.String, origin: address.String,
		}
		if s.Peer, _ = parsePeer(address.String, '/'); other == 0 {
			l.view.Self = &s
			return nil
		}
		l.view.Sessions = append(l.view.Sessions, s)
		return nil
	})
}

func (l *firebirdLook) written() error {
	return l.rows(firebirdWritten, func(scan func(...any) error) error {
		var session, transaction int64
		var table string
		if err := scan(&session, &transaction, &table); err != nil {
			return err
		}
		table = strings.TrimRight(table, " ")
		l.writes[transaction] = true
		l.writers[table] = append(l.writers[table], session)
		if s := l.find(session); s != nil {
			s.addLock(table)
		}
		return nil
	})
}

// transactions books the oldest that has changed something, else the oldest.
func (l *firebirdLook) transactions() error {
	writes := map[int64]bool{} // sessions whose writing one is booked
	return l.rows(firebirdTransactions, func(scan func(...any) error) error {
		var session, transaction int64
		var age sql.NullInt64
		if err := scan(&session, &transaction, &age); err != nil {
			return err
		}
		l.sessionOf[transaction] = session
		s := l.find(session)
		if s == nil || s.InTransaction && (!l.writes[transaction] || writes[session]) {
			return nil
		}
		writes[session] = l.writes[transaction]
		s.State, s.InTransaction, s.Transaction = IdleInTransaction, true, millis(age.Int64)
		return nil
	})
}

func (l *firebirdLook) running() error {
	return l.rows(firebirdRunning, func(scan func(...any) error) error {
		var session int64
		var age sql.NullInt64
		if err := scan(&session, &age); err != nil {
			return err
		}
		if s := l.find(session); s != nil {
			s.State, s.waited = Active, max(s.waited, millis(age.Int64))
		}
		return nil
	})
}

// waits tells who waits for whom. The monitoring tables name the table only;
// when one other session has changed that table, it is that one. When several
// have, the lock table tells, where it can be read, else nobody is named.
func (l *firebirdLook) waits() error {
	return l.rows(firebirdWaits, func(scan func(...any) error) error {
		var session int64
		var table string
		if err := scan(&session, &table); err != nil {
			return err
		}
		s := l.find(session)
		if s == nil {
			return nil
		}
		holders := map[int64]bool{}
		for _, w := range l.writers[strings.TrimRight(table, " ")] {
			if w != session {
				holders[w] = true
			}
		}
		if len(holders) == 0 { // it waited, and goes on
			return nil
		}
		s.State = Waiting
		for h := range holders {
			if len(holders) == 1 {
				s.WaitsFor = append(s.WaitsFor, strconv.FormatInt(h, 10))
			}
		}
		l.unclear = l.unclear || len(holders) > 1
		return nil
	})
}

// lockTable names the holders that the monitoring tables leave open.
func (l *firebirdLook) lockTable() {
	if !l.unclear {
		return
	}
	waits, err := firebirdLockTable(l.ctx, l.source)
	if err != nil {
		l.view.Notes = append(l.view.Notes, Note{Text: fmt.Sprintf("%s does not tell who waits for whom where several sessions changed a table, and its lock table could not be read: %s",
			l.source, l.source.scrub(err.Error()))})
		return
	}
	for waiter, holder := range waits {
		s, h := l.find(l.sessionOf[waiter]), l.sessionOf[holder]
		if s != nil && s.State == Waiting && len(s.WaitsFor) == 0 && h != 0 {
			s.WaitsFor = []string{strconv.FormatInt(h, 10)}
		}
	}
}

// statements reads their text, for show: one that the server cannot convert
// costs all of them, and nothing else.
func (l *firebirdLook) statements() {
	_ = l.rows(firebirdStatements, func(scan func(...any) error) error {
		var session int64
		var statement []byte
		if err := scan(&session, &statement); err != nil {
			return err
		}
		if s := l.find(session); s != nil {
			s.Statement = text(string(statement), maxStatement) // the running one comes last
		}
		return nil
	})
}

func (firebird) end(ctx context.Context, c *sql.Conn, s *Session, last func() error) error {
	id, err := strconv.ParseInt(s.ID, 10, 64)
	if err != nil {
		return ErrGone
	}
	tx, err := c.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := last(); err != nil {
		return err
	}
	result, err := tx.ExecContext(ctx, `DELETE FROM MON$ATTACHMENTS WHERE MON$ATTACHMENT_ID = ? AND MON$ATTACHMENT_ID <> CURRENT_CONNECTION
AND CAST(MON$TIMESTAMP AS VARCHAR(64)) = ? AND MON$REMOTE_ADDRESS = ?`, id, s.birth, s.origin)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err == nil && n == 0 {
		return ErrGone
	}
	return tx.Commit()
}

func (f firebird) grant(err error) string {
	const accessDenied = "no permission for" // isc_no_priv
	if e, ok := errors.AsType[*firebirdsql.FbError](err); ok && strings.Contains(e.Message, accessDenied) {
		return "GRANT RDB$ADMIN TO " + quoteName(f.source.user) + ", and log in with ?role=RDB$ADMIN"
	}
	return ""
}
