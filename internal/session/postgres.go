package session

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

type postgres struct{ source Source }

func postgresConnector(s Source, timeout time.Duration, dial dialer) (driver.Connector, error) {
	// Everything is said here, so that nothing else of the environment counts.
	query := url.Values{"application_name": {"deadpeer"}}
	for name, values := range s.options {
		if name != "host" {
			query[name] = values
		}
	}
	host := s.host
	if s.socket != "" {
		host = s.socket
	}
	query.Set("host", host)
	query.Set("port", strconv.Itoa(int(s.port)))
	query.Set("user", s.user)
	query.Set("dbname", s.database)
	query.Set("passfile", "/nonexistent") // it was read already
	config, err := pgx.ParseConfig("postgres:///?" + query.Encode())
	if err != nil {
		return nil, errors.New("the options of the URL do not fit: sslmode is disable, allow, prefer, require, verify-ca or verify-full; certificates are files that can be read")
	}
	config.Password = string(s.password)
	config.ConnectTimeout, config.DialFunc = timeout, dial.DialContext
	// Unnamed statements pass through poolers such as PgBouncer.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	return stdlib.GetConnector(*config), nil
}

// postgresLook reads all of it at one instant. pg_locks is read once. Names
// of tables are known of our own database only; waitstart is there from
// PostgreSQL 14 on.
const postgresLook = `
WITH l AS (
  SELECT x.*, (to_jsonb(x)->>'waitstart')::timestamptz AS since FROM pg_locks x
), named AS (
  SELECT l.pid, l.locktype, l.mode, l.granted, l.page, l.tuple,
    CASE WHEN l.database = me.oid THEN l.relation::regclass::text
         ELSE other.datname || ' relation ' || l.relation END AS name
  FROM l
  JOIN pg_database me ON me.datname = current_database()
  LEFT JOIN pg_database other ON other.oid = l.database
  LEFT JOIN pg_class k ON k.oid = l.relation AND l.database = me.oid
  WHERE l.relation >= 16384 AND (k.oid IS NULL OR k.relkind IN ('r', 'p', 'm'))
), held AS (
  SELECT pid, jsonb_agg(DISTINCT name)::text AS names FROM named
  WHERE locktype = 'relation' AND granted AND mode <> 'AccessShareLock' GROUP BY pid
), wanted AS (
  SELECT pid, jsonb_agg(DISTINCT name || ' row (' || page || ',' || tuple || ')')::text AS names FROM named
  WHERE locktype = 'tuple' AND granted GROUP BY pid
), waiting AS (
  SELECT pid, min(since) AS since FROM l WHERE NOT granted GROUP BY pid
)
SELECT a.pid, (a.backend_start AT TIME ZONE 'UTC')::text, a.usename::text, a.datname::text, a.application_name, a.state,
  host(a.client_addr), a.client_port, left(a.query, 800),
  (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint,
  (extract(epoch FROM clock_timestamp() - coalesce(waiting.since, a.state_change)) * 1000)::bigint,
  CASE WHEN waiting.pid IS NOT NULL THEN array_to_string(pg_blocking_pids(a.pid), ' ') END,
  held.names, wanted.names, a.pid = pg_backend_pid()
FROM pg_stat_activity a
LEFT JOIN held ON held.pid = a.pid
LEFT JOIN wanted ON wanted.pid = a.pid
LEFT JOIN waiting ON waiting.pid = a.pid
WHERE a.usename IS NOT NULL AND a.datname IS NOT NULL`

func (p postgres) look(ctx context.Context, c *sql.Conn) (*View, error) {
	v := &View{}
	hidden := 0
	wanted := map[string][]string{}
	err := rows(ctx, c, postgresLook, func(scan func(...any) error) error {
		var pid int64
		var birth, user, database, program, state, addr, query, blockers, held, wants sql.NullString
		var port, age, waited sql.NullInt64
		var self bool
		if err := scan(&pid, &birth, &user, &database, &program, &state, &addr, &port, &query,
			&age, &waited, &blockers, &held, &wants, &self); err != nil {
			return err
		}
		if !birth.Valid {
			hidden++
			return nil
		}
		s := Session{
			Engine: PostgreSQL, ID: strconv.FormatInt(pid, 10), User: text(user.String, maxName), Database: text(database.String, maxName),
			Program: text(program.String, maxName), Statement: text(query.String, maxStatement),
			State: postgresState(state.String, age.Valid), InTransaction: age.Valid, Transaction: millis(age.Int64),
			birth: birth.String, origin: fmt.Sprintf("%s %d", addr.String, port.Int64),
		}
		if ip, err := netip.ParseAddr(addr.String); err == nil && port.Int64 > 0 && port.Int64 < 1<<16 {
			s.Peer = netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(port.Int64))
		}
		for _, lock := range stringList(held.String) {
			s.addLock(lock)
		}
		if blockers.Valid {
			s.State, s.waited = Waiting, millis(waited.Int64)
			s.WaitsFor = strings.Fields(blockers.String)
			wanted[s.ID] = stringList(wants.String)
		}
		if self {
			v.Self = &s
			return nil
		}
		v.Sessions = append(v.Sessions, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.invertWaits()
	// The row that a session waits for is held by whom it waits for.
	for i := range v.Sessions {
		waiter := &v.Sessions[i]
		if len(waiter.WaitsFor) != 1 {
			continue
		}
		if holder := v.Find(waiter.WaitsFor[0]); holder != nil {
			for _, row := range wanted[waiter.ID] {
				holder.addLock(row)
			}
		}
	}
	if hidden > 0 {
		v.Notes = append(v.Notes, Note{fmt.Sprintf("%s hides %d sessions of other users: GRANT pg_monitor TO %s", p.source, hidden, quoteName(p.source.user)), true})
	}
	var port string
	if err := c.QueryRowContext(ctx, `SELECT current_setting('port'), 'PostgreSQL ' || current_setting('server_version')`).Scan(&port, &v.Server); err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, errors.New("its port is no number")
	}
	v.Port, v.Server = uint16(n), text(v.Server, maxName)
	return v, nil
}

func postgresState(state string, inTransaction bool) State {
	switch {
	case state == "active" || state == "fastpath function call":
		return Active
	case inTransaction:
		return IdleInTransaction
	}
	return Idle
}

// postgresEnd checks who it is and ends it in one statement. backend_start
// tells the backend from a later one with the same pid.
const postgresEnd = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1::int AND (backend_start AT TIME ZONE 'UTC')::text = $2::text AND host(client_addr) || ' ' || client_port = $3::text AND pid <> pg_backend_pid()`

func (postgres) end(ctx context.Context, c *sql.Conn, s *Session, last func() error) error {
	pid, err := strconv.ParseInt(s.ID, 10, 32)
	if err != nil {
		return ErrGone
	}
	if err := last(); err != nil {
		return err
	}
	var sent bool
	err = c.QueryRowContext(ctx, postgresEnd, pid, s.birth, s.origin).Scan(&sent)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !sent {
		return ErrGone
	}
	return err
}

func (p postgres) grant(err error) string {
	const insufficientPrivilege = "42501" // PostgreSQL, Appendix A
	e, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok || e.Code != insufficientPrivilege:
		return ""
	case strings.Contains(e.Message, "superuser") || strings.Contains(e.Detail, "SUPERUSER"):
		return "only a superuser may end a superuser's session"
	}
	return "GRANT pg_signal_backend TO " + quoteName(p.source.user)
}

// quoteName is a name for a statement that people copy.
func quoteName(name string) string {
	return `"` + strings.ReplaceAll(text(name, maxName), `"`, `""`) + `"`
}

// stringList reads a JSON array of names; what is none gives nothing.
func stringList(s string) (list []string) {
	if s == "" || json.Unmarshal([]byte(s), &list) != nil {
		return nil
	}
	return list
}
