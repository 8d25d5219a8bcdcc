package session

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"
)

// mysql is MariaDB and MySQL.
type mysql struct {
	source    Source
	maria     bool // by its own word, as what follows: known after a look
	dataLocks bool
}

func mysqlConnector(s Source, timeout time.Duration, dial dialer) (driver.Connector, error) {
	config := mysqldriver.NewConfig()
	config.User, config.Passwd, config.DBName = s.user, string(s.password), s.database
	config.Net, config.Addr = "tcp", s.address()
	if s.socket != "" {
		config.Net, config.Addr = "unix", s.socket
	}
	// The context ends a call first; the driver's own timeouts say less.
	config.Timeout, config.ReadTimeout, config.WriteTimeout = timeout, 2*timeout, 2*timeout
	config.Logger, config.DialFunc = &mysqldriver.NopLogger{}, dial.DialContext
	// trx_started is local time of the system whatever the server's time_zone
	// says, and NOW() is not.
	config.Params = map[string]string{"time_zone": "'SYSTEM'"}
	switch tls := s.options.Get("tls"); tls {
	case "":
		config.TLSConfig = "preferred"
	case "true", "false", "preferred", "skip-verify":
		config.TLSConfig = tls
	default:
		return nil, errors.New("tls is true, false, preferred or skip-verify")
	}
	if s.socket != "" {
		config.TLSConfig = "false"
	}
	return mysqldriver.NewConnector(config)
}

const (
	mysqlSessions = `SELECT ID, USER, HOST, DB, COMMAND, LEFT(INFO, 800), ID = CONNECTION_ID()
FROM information_schema.PROCESSLIST WHERE COMMAND <> 'Daemon' AND COMMAND <> 'Binlog Dump'`
	mysqlTransactions = `SELECT trx_mysql_thread_id, trx_state = 'LOCK WAIT',
  TIMESTAMPDIFF(MICROSECOND, trx_started, NOW(6)) DIV 1000,
  TIMESTAMPDIFF(MICROSECOND, trx_wait_started, NOW(6)) DIV 1000, trx_tables_locked, trx_rows_locked
FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id <> 0`
	// MariaDB, and MySQL before 8.
	mariadbWaits = `SELECT r.trx_mysql_thread_id, b.trx_mysql_thread_id, REPLACE(l.lock_table, '` + "`" + `', ''), l.lock_index, l.lock_data
FROM information_schema.INNODB_LOCK_WAITS w
JOIN information_schema.INNODB_TRX r ON r.trx_id = w.requesting_trx_id
JOIN information_schema.INNODB_TRX b ON b.trx_id = w.blocking_trx_id
LEFT JOIN information_schema.INNODB_LOCKS l ON l.lock_id = w.blocking_lock_id`
	// MySQL 8.0 Reference Manual, "The data_lock_waits Table".
	mysqlWaits = `SELECT r.PROCESSLIST_ID, b.PROCESSLIST_ID, CONCAT(l.OBJECT_SCHEMA, '.', l.OBJECT_NAME), l.INDEX_NAME, l.LOCK_DATA
FROM performance_schema.data_lock_waits w
JOIN performance_schema.threads r ON r.THREAD_ID = w.REQUESTING_THREAD_ID
JOIN performance_schema.threads b ON b.THREAD_ID = w.BLOCKING_THREAD_ID
LEFT JOIN performance_schema.data_locks l ON l.ENGINE_LOCK_ID = w.BLOCKING_ENGINE_LOCK_ID`
	mysqlPrograms = `SELECT PROCESSLIST_ID, ATTR_VALUE FROM performance_schema.session_connect_attrs WHERE ATTR_NAME = 'program_name'`
)

// hasDataLocks reports whether the server is a MySQL that has its lock waits
// in performance_schema.
func hasDataLocks(version string) bool {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n >= 8 && !strings.Contains(version, "MariaDB")
}

func (m *mysql) look(ctx context.Context, c *sql.Conn) (*View, error) {
	v := &View{}
	var version string
	if err := c.QueryRowContext(ctx, "SELECT VERSION(), @@port").Scan(&version, &v.Port); err != nil {
		return nil, err
	}
	engine, name := MySQL, "MySQL "
	if m.maria, m.dataLocks = strings.Contains(version, "MariaDB"), hasDataLocks(version); m.maria {
		engine, name = MariaDB, "MariaDB "
	}
	v.Server = name + text(version, maxName)
	err := rows(ctx, c, mysqlSessions, func(scan func(...any) error) error {
		var id uint64
		var user, host, database, command, info sql.NullString
		var self bool
		if err := scan(&id, &user, &host, &database, &command, &info, &self); err != nil {
			return err
		}
		s := Session{
			Engine: engine, ID: strconv.FormatUint(id, 10), User: text(user.String, maxName), Database: text(database.String, maxName),
			Statement: text(info.String, maxStatement), State: Active, birth: user.String, origin: host.String,
		}
		if command.String == "Sleep" {
			s.State = Idle
		}
		if s.Peer, _ = parsePeer(host.String, ':'); self {
			v.Self = &s
			return nil
		}
		v.Sessions = append(v.Sessions, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	missing := "" // the GRANT
	for _, step := range []struct {
		read    func(context.Context, *sql.Conn, *View) error
		without string
	}{
		{m.transactions, "shows our own sessions only, and no transactions"},
		{m.waits, "does not tell who waits for whom"},
	} {
		err := step.read(ctx, c, v)
		switch grant := m.grant(err); {
		case err == nil || grant != "" && grant == missing:
		case grant == "":
			return nil, err
		default:
			missing = grant
			v.Notes = append(v.Notes, Note{fmt.Sprintf("%s %s: %s", m.source, step.without, grant), true})
		}
	}
	m.programs(ctx, c, v)
	v.invertWaits()
	return v, nil
}

func (*mysql) transactions(ctx context.Context, c *sql.Conn, v *View) error {
	return rows(ctx, c, mysqlTransactions, func(scan func(...any) error) error {
		var id string
		var waits bool
		var age, waited, tables, locked sql.NullInt64
		if err := scan(&id, &waits, &age, &waited, &tables, &locked); err != nil {
			return err
		}
		s := v.Find(id)
		if s == nil {
			return nil
		}
		s.InTransaction, s.Transaction = true, millis(age.Int64)
		switch {
		case waits:
			s.State, s.waited = Waiting, millis(waited.Int64)
		case s.State == Idle:
			s.State = IdleInTransaction
		}
		if locked.Int64 > 0 { // until a wait names them
			s.Locks = []string{fmt.Sprintf("rows: %d, tables: %d", locked.Int64, tables.Int64)}
		}
		return nil
	})
}

func (m *mysql) waits(ctx context.Context, c *sql.Conn, v *View) error {
	query := mariadbWaits
	if m.dataLocks {
		query = mysqlWaits
	}
	named := map[string]bool{}
	return rows(ctx, c, query, func(scan func(...any) error) error {
		var waiter, holder string
		var table, index, data sql.NullString
		if err := scan(&waiter, &holder, &table, &index, &data); err != nil {
			return err
		}
		if s := v.Find(waiter); s != nil {
			s.WaitsFor = append(s.WaitsFor, holder)
		}
		if s := v.Find(holder); s != nil && table.Valid {
			if !named[holder] {
				named[holder], s.Locks = true, nil
			}
			if s.addLock(table.String); data.Valid {
				s.addLock(fmt.Sprintf("%s %s=%s", table.String, index.String, data.String))
			}
		}
		return nil
	})
}

// programs asks by what name the clients go. Servers without a performance
// schema, or without the right to it, do not tell, and nothing is lost.
func (*mysql) programs(ctx context.Context, c *sql.Conn, v *View) {
	_ = rows(ctx, c, mysqlPrograms, func(scan func(...any) error) error {
		var id, program sql.NullString
		if err := scan(&id, &program); err != nil {
			return err
		}
		if s := v.Find(id.String); s != nil {
			s.Program = text(program.String, maxName)
		}
		return nil
	})
}

func (*mysql) end(ctx context.Context, c *sql.Conn, s *Session, last func() error) error {
	id, err := strconv.ParseUint(s.ID, 10, 64)
	if err != nil {
		return ErrGone
	}
	// Ids are not used again while the server runs; host and port tell a
	// session from one of an earlier run.
	var same bool
	err = c.QueryRowContext(ctx, `SELECT HOST = ? AND USER = ? FROM information_schema.PROCESSLIST WHERE ID = ? AND ID <> CONNECTION_ID()`,
		s.origin, s.birth, id).Scan(&same)
	switch {
	case errors.Is(err, sql.ErrNoRows) || err == nil && !same:
		return ErrGone
	case err != nil:
		return err
	}
	if err := last(); err != nil {
		return err
	}
	_, err = c.ExecContext(ctx, "KILL CONNECTION "+strconv.FormatUint(id, 10))
	if e, ok := errors.AsType[*mysqldriver.MySQLError](err); ok && e.Number == errNoSuchThread {
		return ErrGone
	}
	return err
}

// MariaDB Error Codes; MySQL has the same.
const (
	errNoSuchThread  = 1094
	errKillDenied    = 1095
	errTableDenied   = 1142
	errAccessMissing = 1227
)

func (m *mysql) grant(err error) string {
	e, ok := errors.AsType[*mysqldriver.MySQLError](err)
	if !ok {
		return ""
	}
	var privilege string
	switch {
	case e.Number == errKillDenied && m.maria:
		privilege = "CONNECTION ADMIN ON *.*"
	case e.Number == errKillDenied:
		privilege = "CONNECTION_ADMIN ON *.*"
	case e.Number == errTableDenied: // of our tables only those of performance_schema take a GRANT
		privilege = "SELECT ON performance_schema.*"
	case e.Number == errAccessMissing:
		_, list, _ := strings.Cut(e.Message, "(at least one of) the ")
		list, _, named := strings.Cut(list, " privilege(s)")
		if !named {
			list = "PROCESS"
		}
		privilege = text(list, maxName) + " ON *.*"
	default:
		return ""
	}
	return "GRANT " + privilege + " TO " + m.grantee()
}

func (m *mysql) grantee() string {
	return "'" + strings.ReplaceAll(text(m.source.user, maxName), "'", "''") + "'"
}
