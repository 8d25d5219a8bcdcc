package databases

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"net/url"
	"os/exec"
	"strconv"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/nakagami/firebirdsql"

	"deadpeer/internal/servertest"
	"deadpeer/internal/testnet"
)

// Accounts of every server. watch may look, and not end sessions; lowly may
// not look.
const (
	boss, bossPassword   = "SYSDBA", "boss-secret"
	watch, watchPassword = "WATCH", "watch-secret"
	lowly, lowlyPassword = "LOWLY", "lowly-secret"
)

// rows of the table ITEMS, and what each test locks, is its own affair.
const rows = 12

// server is a database server that runs.
type server struct {
	servertest.Database

	engine string // as JSON spells it
	scheme string
	driver string // of database/sql
	port   int
	table  string // as locks name it
	dsn    func(addr netip.Addr, user, password string) string
	// client is the engine's own client program, which runs the statements
	// that it is given on its input.
	client func(ctx context.Context, t testing.TB, addr netip.Addr) *exec.Cmd
	begin  string   // what begins a transaction there
	env    []string // that deadpeer needs
}

// url is the server as deadpeer, on the same host, is told of it.
func (s *server) url(user, password string) string {
	database := map[string]string{"firebird": "/" + s.Folder + "/items.fdb", "postgres": "postgres"}[s.scheme]
	u := url.URL{Scheme: s.scheme, User: url.UserPassword(user, password), Host: fmt.Sprintf("127.0.0.1:%d", s.port), Path: "/" + database}
	return u.String()
}

// awaitServer waits until somebody can log in.
func awaitServer(t testing.TB, host *testnet.Host, s *server) {
	t.Helper()
	servertest.Await(t, s.engine+" to answer", func() bool {
		c, err := dial(t.Context(), host, s, netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

// master is the account that servertest makes.
var master = servertest.Account{Name: boss, Password: bossPassword}

func firebird(t testing.TB, host *testnet.Host) *server {
	t.Helper()
	isql := servertest.Program(t, "isql-fb")
	list := []string{"CREATE TABLE ITEMS (ID INTEGER NOT NULL PRIMARY KEY, V INTEGER);", "COMMIT;"}
	for id := range rows {
		list = append(list, fmt.Sprintf("INSERT INTO ITEMS VALUES (%d, 0);", id))
	}
	list = append(list, fmt.Sprintf("GRANT ALL ON ITEMS TO %s;", lowly))
	db := servertest.Firebird(t, host, bossPassword, []servertest.Account{{Name: watch, Password: watchPassword}, {Name: lowly, Password: lowlyPassword}}, list...)
	dir := db.Folder
	s := &server{
		Database: db, engine: "firebird", scheme: "firebird", driver: "firebirdsql", port: 3050, table: "ITEMS",
		dsn: func(addr netip.Addr, user, password string) string {
			return fmt.Sprintf("%s:%s@%s/%s/items.fdb?cancel_hard_drop=true&cancel_hard_drop_grace=200", user, password, at(addr, 3050), dir)
		},
		client: func(ctx context.Context, _ testing.TB, addr netip.Addr) *exec.Cmd {
			return exec.CommandContext(ctx, isql, "-quiet", "-user", lowly, "-password", lowlyPassword, fmt.Sprintf("%s/3050:%s/items.fdb", addr, dir))
		},
		env: []string{"FIREBIRD_LOCK=" + dir}, // where the lock table is
	}
	awaitServer(t, host, s)
	return s
}

func postgres(t testing.TB, host *testnet.Host) *server {
	t.Helper()
	psql := servertest.Program(t, "psql")
	s := &server{
		Database: servertest.PostgreSQL(t, host, master), engine: "postgresql", scheme: "postgres", driver: "pgx", port: 5432, table: "items",
		dsn: func(addr netip.Addr, user, password string) string {
			return fmt.Sprintf("postgres://%s:%s@%s/postgres?sslmode=disable", user, password, at(addr, 5432))
		},
		client: func(ctx context.Context, _ testing.TB, addr netip.Addr) *exec.Cmd {
			return exec.CommandContext(ctx, psql, "-X", "-q", fmt.Sprintf("postgres://%s:%s@%s/postgres?sslmode=disable", lowly, lowlyPassword, at(addr, 5432)))
		},
		begin: "BEGIN;\n",
	}
	awaitServer(t, host, s)
	statements(t, host, s,
		"CREATE TABLE items (id INT PRIMARY KEY, v INT)",
		"INSERT INTO items SELECT n, 0 FROM generate_series(0, "+strconv.Itoa(rows-1)+") n",
		fmt.Sprintf(`CREATE ROLE "%s" LOGIN PASSWORD '%s'`, watch, watchPassword), fmt.Sprintf(`GRANT pg_monitor TO "%s"`, watch),
		fmt.Sprintf(`CREATE ROLE "%s" LOGIN PASSWORD '%s'`, lowly, lowlyPassword), fmt.Sprintf(`GRANT ALL ON items TO "%s"`, lowly),
	)
	return s
}

func mariadb(t testing.TB, host *testnet.Host) *server {
	t.Helper()
	return likeMySQL(t, host, "mariadb", servertest.MariaDB, "mariadb")
}

func mysql(t testing.TB, host *testnet.Host) *server {
	t.Helper()
	return likeMySQL(t, host, "mysql", servertest.MySQL, "mysql", fmt.Sprintf("GRANT SELECT ON performance_schema.* TO '%s'@'%%';", watch))
}

func likeMySQL(t testing.TB, host *testnet.Host, name string, start func(testing.TB, *testnet.Host, servertest.Account, ...string) servertest.Database, client string, more ...string) *server {
	t.Helper()
	list := []string{"CREATE DATABASE stock;", "CREATE TABLE stock.items (id INT PRIMARY KEY, v INT) ENGINE=InnoDB;"}
	for id := range rows {
		list = append(list, fmt.Sprintf("INSERT INTO stock.items VALUES (%d, 0);", id))
	}
	list = append(list,
		fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';", watch, watchPassword), fmt.Sprintf("GRANT PROCESS ON *.* TO '%s'@'%%';", watch),
		fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';", lowly, lowlyPassword), fmt.Sprintf("GRANT ALL ON stock.* TO '%s'@'%%';", lowly))
	db := start(t, host, master, append(list, more...)...)
	program := servertest.Program(t, client)
	s := &server{
		Database: db, engine: name, scheme: name, driver: "mysql", port: 3306, table: "stock.items",
		dsn: func(addr netip.Addr, user, password string) string {
			return fmt.Sprintf("%s:%s@tcp(%s)/stock", user, password, at(addr, 3306))
		},
		client: func(ctx context.Context, _ testing.TB, addr netip.Addr) *exec.Cmd {
			return exec.CommandContext(ctx, program, "--no-defaults", "-h", addr.String(), "-P", "3306", "-u", lowly, "-p"+lowlyPassword, "stock")
		},
		begin: "BEGIN;\n",
	}
	awaitServer(t, host, s)
	return s
}

// dial logs in from a host. The drivers dial a literal address on the thread
// that asks for the connection, so that it is of the host.
func dial(ctx context.Context, host *testnet.Host, s *server, addr netip.Addr) (c *conn, err error) {
	pool, err := sql.Open(s.driver, s.dsn(addr, boss, bossPassword))
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(1)
	c = &conn{pool: pool}
	err = host.Do(func() (err error) {
		c.Conn, err = pool.Conn(ctx)
		return err
	})
	if err != nil {
		_ = pool.Close()
		return nil, err
	}
	return c, nil
}

// conn is one logged-in client.
type conn struct {
	*sql.Conn
	pool *sql.DB
}

// Close logs out.
func (c *conn) Close() error {
	_ = c.Conn.Close() // gives it back to the pool
	return c.pool.Close()
}

func statements(t testing.TB, host *testnet.Host, s *server, list ...string) {
	t.Helper()
	c := must(dial(t.Context(), host, s, netip.MustParseAddr("127.0.0.1")))(t)
	for _, statement := range list {
		must(c.ExecContext(t.Context(), statement))(t)
	}
	ok(t, c.Close())
}
