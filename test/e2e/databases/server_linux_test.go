package databases

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/nakagami/firebirdsql"

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
	engine string // as JSON spells it
	scheme string
	driver string // of database/sql
	port   int
	folder string
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
	database := map[string]string{"firebird": "/" + s.folder + "/items.fdb", "postgres": "postgres", "mariadb": ""}[s.scheme]
	u := url.URL{Scheme: s.scheme, User: url.UserPassword(user, password), Host: fmt.Sprintf("127.0.0.1:%d", s.port), Path: "/" + database}
	return u.String()
}

// folder is one that other users may enter; testing's own they may not.
func folder(t testing.TB, owner *syscall.Credential) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "deadpeer-e2e-"))(t)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	ok(t, os.Chown(dir, int(owner.Uid), int(owner.Gid)))
	return dir
}

// as runs a program to its end as another user.
func as(t testing.TB, owner *syscall.Credential, dir string, env []string, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), env...), strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// serve starts a server on a host and ends it with the test. A shell keeps
// watch: should this process die, its input ends, and so does the server.
func serve(t testing.TB, host *testnet.Host, owner *syscall.Credential, dir string, env []string, args ...string) {
	t.Helper()
	log := must(os.Create(filepath.Join(dir, "output")))(t)
	cmd := exec.Command("sh", append([]string{"-c", `"$@" </dev/null & p=$!; cat >/dev/null; kill -KILL $p; wait $p`, "sh"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	stdin := must(cmd.StdinPipe())(t)
	ok(t, host.Start(cmd))
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait() // killed
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			t.Logf("%s: %s", args[0], out)
		}
		_ = log.Close()
	})
}

// awaitServer waits until somebody can log in.
func awaitServer(t testing.TB, host *testnet.Host, s *server) {
	t.Helper()
	await(t, s.engine+" to answer", func() bool {
		c, err := dial(t.Context(), host, s, netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
}

// await polls for what comes soon on an idle machine.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within 60 s", what)
		}
	}
}

func firebird(t testing.TB, host *testnet.Host) *server {
	t.Helper()
	binary, isql := program(t, "firebird", "/usr/sbin/firebird"), program(t, "isql-fb")
	owner := credential(t, "firebird")
	dir := folder(t, owner)
	installed, err := filepath.Glob("/usr/lib/*/firebird/3.0/intl")
	if err != nil || len(installed) == 0 {
		missing(t, "no Firebird 3.0 in /usr/lib (.ci/packages)")
	}
	ok(t, os.Symlink(installed[0], filepath.Join(dir, "intl")))
	config := map[string]string{
		"databases.conf": "", "plugins.conf": "",
		"firebird.conf": "RemoteServicePort = 3050\nSecurityDatabase = " + dir + "/security.fdb\nUserManager = Srp\nAuthServer = Srp\nDatabaseAccess = Full\n",
	}
	for name, text := range config {
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	env := []string{"FIREBIRD=" + dir, "FIREBIRD_LOCK=" + dir, "FIREBIRD_TMP=" + dir}
	script := &strings.Builder{}
	fmt.Fprintf(script, "CREATE DATABASE '%s/security.fdb';\n", dir)
	for _, account := range [][2]string{{boss, bossPassword}, {watch, watchPassword}, {lowly, lowlyPassword}} {
		fmt.Fprintf(script, "CREATE USER %s PASSWORD '%s' USING PLUGIN Srp;\n", account[0], account[1])
	}
	fmt.Fprintf(script, "COMMIT;\nCREATE DATABASE '%s/items.fdb';\nCREATE TABLE ITEMS (ID INTEGER NOT NULL PRIMARY KEY, V INTEGER);\nCOMMIT;\n", dir)
	for id := range rows {
		fmt.Fprintf(script, "INSERT INTO ITEMS VALUES (%d, 0);\n", id)
	}
	fmt.Fprintf(script, "GRANT ALL ON ITEMS TO %s;\nCOMMIT;\n", lowly)
	as(t, owner, dir, env, script.String(), isql, "-quiet", "-user", boss)
	serve(t, host, owner, dir, env, binary)
	s := &server{
		engine: "firebird", scheme: "firebird", driver: "firebirdsql", port: 3050, folder: dir, table: "ITEMS",
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
	psql := program(t, "psql")
	var bin string
	for _, dir := range must(filepath.Glob("/usr/lib/postgresql/*/bin"))(t) {
		bin = dir
	}
	if bin == "" {
		missing(t, "no PostgreSQL in /usr/lib/postgresql (.ci/packages)")
	}
	owner := credential(t, "postgres")
	dir := folder(t, owner)
	ok(t, os.WriteFile(filepath.Join(dir, "password"), []byte(bossPassword+"\n"), 0o644))
	data := filepath.Join(dir, "data")
	as(t, owner, dir, nil, "", filepath.Join(bin, "initdb"), "-D", data, "-U", boss, "--auth=scram-sha-256",
		"--pwfile="+filepath.Join(dir, "password"), "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8")
	hba := must(os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0))(t)
	must(hba.WriteString("host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n"))(t)
	ok(t, hba.Close())
	serve(t, host, owner, dir, nil, filepath.Join(bin, "postgres"), "-D", data, "-p", "5432", "-k", dir,
		"-c", "listen_addresses=*", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "autovacuum=off")
	s := &server{
		engine: "postgresql", scheme: "postgres", driver: "pgx", port: 5432, folder: dir, table: "items",
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
	binary, install, client := program(t, "mariadbd", "/usr/sbin/mariadbd"), program(t, "mariadb-install-db"), program(t, "mariadb")
	owner := credential(t, "mysql")
	dir := folder(t, owner)
	config := filepath.Join(dir, "my.cnf")
	ok(t, os.WriteFile(config, []byte(`[mysqld]
datadir=`+dir+`/data
socket=`+dir+`/socket
pid-file=`+dir+`/pid
port=3306
bind-address=*
skip-log-bin
skip-name-resolve
innodb_buffer_pool_size=32M
innodb_log_file_size=8M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=600
performance_schema=ON
`), 0o644))
	as(t, owner, dir, nil, "", install, "--defaults-file="+config, "--auth-root-authentication-method=normal", "--skip-test-db")
	list := []string{
		"CREATE DATABASE stock;", "USE stock;", "CREATE TABLE stock.items (id INT PRIMARY KEY, v INT) ENGINE=InnoDB;",
		fmt.Sprintf("INSERT INTO stock.items SELECT seq, 0 FROM seq_0_to_%d;", rows-1),
		fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';", boss, bossPassword), fmt.Sprintf("GRANT ALL ON *.* TO '%s'@'%%';", boss),
		fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';", watch, watchPassword), fmt.Sprintf("GRANT PROCESS ON *.* TO '%s'@'%%';", watch),
		fmt.Sprintf("CREATE USER '%s'@'%%' IDENTIFIED BY '%s';", lowly, lowlyPassword), fmt.Sprintf("GRANT ALL ON stock.* TO '%s'@'%%';", lowly),
	}
	ok(t, os.WriteFile(filepath.Join(dir, "init.sql"), []byte(strings.Join(list, "\n")+"\n"), 0o644))
	serve(t, host, owner, dir, nil, binary, "--defaults-file="+config, "--init-file="+filepath.Join(dir, "init.sql"))
	s := &server{
		engine: "mariadb", scheme: "mariadb", driver: "mysql", port: 3306, folder: dir, table: "stock.items",
		dsn: func(addr netip.Addr, user, password string) string {
			return fmt.Sprintf("%s:%s@tcp(%s)/stock", user, password, at(addr, 3306))
		},
		client: func(ctx context.Context, _ testing.TB, addr netip.Addr) *exec.Cmd {
			return exec.CommandContext(ctx, client, "--no-defaults", "-h", addr.String(), "-P", "3306", "-u", lowly, "-p"+lowlyPassword, "stock")
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
