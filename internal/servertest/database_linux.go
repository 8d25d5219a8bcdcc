package servertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"deadpeer/internal/testnet"
)

// Account is one that may do everything.
type Account struct{ Name, Password string }

// Database is a database server that has been started. It may not answer yet.
type Database struct {
	Folder string // its own
	PID    int
}

// PostgreSQL starts one on port 5432 of every address, with an account.
func PostgreSQL(t testing.TB, host *testnet.Host, boss Account) Database {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		Missing(t, "no PostgreSQL in /usr/lib/postgresql (.ci/packages)")
	}
	bin, owner := bins[len(bins)-1], Credential(t, "postgres")
	dir := Folder(t, owner)
	Run(t, owner, dir, nil, "", filepath.Join(bin, "initdb"), "-D", dir+"/data", "-U", boss.Name, "--auth=scram-sha-256",
		"--pwfile="+Write(t, dir, "password", boss.Password+"\n"), "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8")
	hba := Write(t, dir, "hba.conf", "local all all scram-sha-256\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n")
	return Database{dir, Serve(t, host, owner, dir, nil, filepath.Join(bin, "postgres"), "-D", dir+"/data", "-p", "5432", "-k", dir, "-c", "hba_file="+hba,
		"-c", "listen_addresses=*", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "autovacuum=off")}
}

// ofMySQL is the configuration that MariaDB and MySQL have in common. The time
// zone is far from that of the machine.
const ofMySQL = `[mysqld]
datadir=%[1]s/data
socket=%[1]s/socket
pid-file=%[1]s/pid
port=3306
bind-address=*
skip-log-bin
skip-name-resolve
default-time-zone=+05:00
innodb_buffer_pool_size=32M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=600
performance_schema=ON
`

// MariaDB starts one on port 3306 of every address, with an account. The
// statements, a line each, are run before anybody can log in.
func MariaDB(t testing.TB, host *testnet.Host, boss Account, statements ...string) Database {
	t.Helper()
	binary, install := Program(t, "mariadbd", "/usr/sbin/mariadbd"), Program(t, "mariadb-install-db")
	owner := Credential(t, "mysql")
	dir := Folder(t, owner)
	config := Write(t, dir, "my.cnf", fmt.Sprintf(ofMySQL, dir)+"innodb_log_file_size=8M\n")
	Run(t, owner, dir, nil, "", install, "--defaults-file="+config, "--auth-root-authentication-method=normal", "--skip-test-db")
	return Database{dir, Serve(t, host, owner, dir, nil, binary, "--defaults-file="+config, "--init-file="+accounts(t, dir, boss, statements))}
}

// MySQL starts one like MariaDB, from the mysqld of PATH. Debian has none, so
// that without it the test is skipped, with CI set, too.
func MySQL(t testing.TB, host *testnet.Host, boss Account, statements ...string) Database {
	t.Helper()
	binary, err := exec.LookPath("mysqld")
	if err == nil {
		version, _ := exec.CommandContext(t.Context(), binary, "--version").Output()
		if strings.Contains(string(version), "MariaDB") {
			err = exec.ErrNotFound
		}
	}
	if err != nil {
		t.Skip("no mysqld of MySQL in PATH")
	}
	owner := Credential(t, "mysql")
	dir := Folder(t, owner)
	config := Write(t, dir, "my.cnf", fmt.Sprintf(ofMySQL, dir)+"mysqlx=OFF\nsecure_file_priv=NULL\ninnodb_redo_log_capacity=16M\n")
	Run(t, owner, dir, nil, "", binary, "--defaults-file="+config, "--initialize-insecure")
	return Database{dir, Serve(t, host, owner, dir, nil, binary, "--defaults-file="+config, "--init-file="+accounts(t, dir, boss, statements))}
}

func accounts(t testing.TB, dir string, boss Account, statements []string) string {
	t.Helper()
	script := fmt.Sprintf("CREATE USER '%[1]s'@'%%' IDENTIFIED BY '%[2]s';\nGRANT ALL ON *.* TO '%[1]s'@'%%';\n", boss.Name, boss.Password)
	return Write(t, dir, "init.sql", script+strings.Join(statements, "\n")+"\n")
}

// Firebird starts Firebird 3 on port 3050 of every address, with SYSDBA and
// the database items.fdb in its folder. The statements are run in that, as
// SYSDBA, before the server starts; accounts are made in the same way.
// Programs that look at its lock table need the environment FIREBIRD_LOCK set
// to the folder.
func Firebird(t testing.TB, host *testnet.Host, password string, accounts []Account, statements ...string) Database {
	t.Helper()
	binary, isql := Program(t, "firebird", "/usr/sbin/firebird"), Program(t, "isql-fb")
	owner := Credential(t, "firebird")
	dir := Folder(t, owner)
	intl, _ := filepath.Glob("/usr/lib/*/firebird/3.0/intl")
	if len(intl) == 0 {
		Missing(t, "no Firebird 3.0 in /usr/lib (.ci/packages)")
	}
	Write(t, dir, "databases.conf", "")
	Write(t, dir, "plugins.conf", "")
	Write(t, dir, "firebird.conf", "RemoteServicePort = 3050\nSecurityDatabase = "+dir+"/security.fdb\nUserManager = Srp\nAuthServer = Srp\nDatabaseAccess = Full\n")
	env := []string{"FIREBIRD=" + dir, "FIREBIRD_LOCK=" + dir, "FIREBIRD_TMP=" + dir}
	if err := os.Symlink(intl[0], filepath.Join(dir, "intl")); err != nil {
		t.Fatal(err)
	}
	script := &strings.Builder{}
	fmt.Fprintf(script, "CREATE DATABASE '%s/security.fdb';\n", dir)
	for _, a := range append([]Account{{"SYSDBA", password}}, accounts...) {
		fmt.Fprintf(script, "CREATE USER %s PASSWORD '%s' USING PLUGIN Srp;\n", a.Name, a.Password)
	}
	fmt.Fprintf(script, "COMMIT;\nCREATE DATABASE '%s/items.fdb';\n%s\nCOMMIT;\n", dir, strings.Join(statements, "\n"))
	Run(t, owner, dir, env, script.String(), isql, "-quiet", "-user", "SYSDBA")
	return Database{dir, Serve(t, host, owner, dir, env, binary)}
}
