package heartbeat

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"deadpeer/internal/testnet"
	"deadpeer/internal/zeotest"
)

const password = "e2e-secret"

// missing skips, and fails where nothing may be missing.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// program finds a program that a test needs.
func program(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, "%s is not installed (.ci/packages)", names[0])
	return ""
}

// owner is another user's identity; becoming one takes the real root.
func owner(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		missing(t, "needs root, to start servers as their own users")
	}
	u, err := user.Lookup(name)
	if err != nil {
		missing(t, "no user %s (.ci/packages): %v", name, err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		t.Fatalf("user %s has the ids %s and %s", name, u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// folder is one that other users may enter; testing's own they may not.
func folder(t testing.TB, c *syscall.Credential) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "deadpeer-beat-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, int(c.Uid), int(c.Gid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// as runs a program to its end.
func as(t testing.TB, c *syscall.Credential, dir string, env []string, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), env...), strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// serve starts a server on a host and ends it with the test. A shell keeps
// watch: should this process die, its input ends, and so does the server.
func serve(t testing.TB, host *testnet.Host, c *syscall.Credential, dir string, env []string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", append([]string{"-c", `"$@" </dev/null & p=$!; cat >/dev/null; kill -KILL $p; wait $p`, "sh"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(cmd); err != nil {
		t.Fatal(err)
	}
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

func postgres(t testing.TB, host *testnet.Host) {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		missing(t, "no PostgreSQL in /usr/lib/postgresql (.ci/packages)")
	}
	bin, c := bins[len(bins)-1], owner(t, "postgres")
	dir := folder(t, c)
	as(t, c, dir, nil, "", filepath.Join(bin, "initdb"), "-D", dir+"/data", "-U", "boss", "--auth=scram-sha-256",
		"--pwfile="+write(t, dir, "password", password+"\n"), "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8")
	hba := write(t, dir, "hba.conf", "host all all 0.0.0.0/0 scram-sha-256\n")
	serve(t, host, c, dir, nil, filepath.Join(bin, "postgres"), "-D", dir+"/data", "-p", "5432", "-k", dir, "-c", "hba_file="+hba,
		"-c", "listen_addresses=*", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "autovacuum=off")
}

func mariadb(t testing.TB, host *testnet.Host) {
	t.Helper()
	binary, install := program(t, "mariadbd", "/usr/sbin/mariadbd"), program(t, "mariadb-install-db")
	c := owner(t, "mysql")
	dir := folder(t, c)
	config := write(t, dir, "my.cnf", fmt.Sprintf(`[mysqld]
datadir=%[1]s/data
socket=%[1]s/socket
pid-file=%[1]s/pid
port=3306
bind-address=*
skip-log-bin
skip-name-resolve
innodb_buffer_pool_size=32M
innodb_log_file_size=8M
innodb_flush_log_at_trx_commit=0
`, dir))
	as(t, c, dir, nil, "", install, "--defaults-file="+config, "--auth-root-authentication-method=normal", "--skip-test-db")
	init := write(t, dir, "init.sql", fmt.Sprintf("CREATE USER 'boss'@'%%' IDENTIFIED BY '%s';\n", password))
	serve(t, host, c, dir, nil, binary, "--defaults-file="+config, "--init-file="+init)
}

func firebird(t testing.TB, host *testnet.Host) (database string) {
	t.Helper()
	binary, isql := program(t, "firebird", "/usr/sbin/firebird"), program(t, "isql-fb")
	c := owner(t, "firebird")
	dir := folder(t, c)
	intl, _ := filepath.Glob("/usr/lib/*/firebird/3.0/intl")
	if len(intl) == 0 {
		missing(t, "no Firebird 3.0 in /usr/lib (.ci/packages)")
	}
	if err := os.Symlink(intl[0], filepath.Join(dir, "intl")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "databases.conf", "")
	write(t, dir, "plugins.conf", "")
	write(t, dir, "firebird.conf", "RemoteServicePort = 3050\nSecurityDatabase = "+dir+"/security.fdb\nUserManager = Srp\nAuthServer = Srp\nDatabaseAccess = Full\n")
	env := []string{"FIREBIRD=" + dir, "FIREBIRD_LOCK=" + dir, "FIREBIRD_TMP=" + dir}
	script := fmt.Sprintf("CREATE DATABASE '%[1]s/security.fdb';\nCREATE USER SYSDBA PASSWORD '%[2]s' USING PLUGIN Srp;\nCOMMIT;\nCREATE DATABASE '%[1]s/items.fdb';\n", dir, password)
	as(t, c, dir, env, script, isql, "-quiet", "-user", "SYSDBA")
	serve(t, host, c, dir, env, binary)
	return dir + "/items.fdb"
}

func redisServer(t testing.TB, host *testnet.Host, port int) {
	t.Helper()
	serve(t, host, nil, t.TempDir(), nil, program(t, "redis-server"), "--port", strconv.Itoa(port), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
}

// listen listens on the host, until the end of the test.
func listen(t testing.TB, host *testnet.Host, port int) net.Listener {
	t.Helper()
	l, err := host.Listen(t.Context(), "tcp", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// services are servers of our own: ZEO with either protocol, HTTP, WebSocket
// and gRPC.
func services(t testing.TB, host *testnet.Host) {
	t.Helper()
	for port, msgpack := range map[int]bool{8100: false, 8101: true} {
		s := zeotest.Serve(listen(t, host, port), msgpack)
		t.Cleanup(s.Close)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "good") })
	mux.HandleFunc("GET /feed", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		<-c.CloseRead(context.Background()).Done()
	})
	web := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = web.Serve(listen(t, host, 8080)) }()
	t.Cleanup(func() { _ = web.Close() })
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	go func() { _ = rpc.Serve(listen(t, host, 50051)) }()
	t.Cleanup(rpc.Stop)
}
