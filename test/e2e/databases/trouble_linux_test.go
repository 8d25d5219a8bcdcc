package databases

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"deadpeer/internal/servertest"
)

// troubles are what may go wrong between deadpeer and a database: clear,
// bounded, escaped, and no harm to those who live.
func (w *world) troubles(t *testing.T) {
	filter := fmt.Sprintf("sport = :%d", w.server.port)
	sessions := func(url string) result { return w.deadpeer("scan", "--db", url, "-o", "jsonl", filter) }
	said := func(what string, r result, code int, wanted ...string) {
		t.Helper()
		contains(t, what, r.stderr, wanted...)
		if r.code != code || strings.Contains(r.stderr, "-secret") {
			t.Errorf("%s: exit code %d, want %d: %s", what, r.code, code, r.stderr)
		}
		if len(r.lines(t)) == 0 {
			t.Errorf("%s costs the connections, too", what)
		}
	}
	said("a wrong password", sessions(w.server.url(boss, "wrong-secret")), 3, "log in to", "every user of this host can read a password", "did not tell")
	said("a missing privilege", sessions(w.secretFile(lowly, lowlyPassword)), 4, "GRANT", lowly)
	elsewhere := *w.server
	elsewhere.port++
	said("a server that is down", sessions(elsewhere.url(boss, bossPassword)), 3, "connection refused")

	ok(t, syscall.Kill(w.server.PID, syscall.SIGSTOP))
	said("a server that hangs", sessions(w.secretFile(boss, bossPassword)), 3, "no answer within 3s")
	ok(t, syscall.Kill(w.server.PID, syscall.SIGCONT))

	// Several URLs of one server show each session once.
	twice := w.deadpeer("sessions", "--db", w.secretFile(boss, bossPassword), "--db", w.secretFile(boss, bossPassword), "-o", "jsonl", filter)
	count := map[string]int{}
	for _, one := range twice.ties(t) {
		if count[one.Session.ID]++; count[one.Session.ID] > 1 || strings.Contains(one.Leg, "several") {
			t.Errorf("twice: %+v", one)
		}
	}
	if len(count) == 0 {
		t.Errorf("no sessions: %s", twice.stderr)
	}

	w.elsewhere(t)

	r := w.deadpeer("sessions")
	if r.code != 2 || !strings.Contains(r.stderr, "--db "+w.server.scheme+"://USER@") {
		t.Errorf("no URL: exit code %d, %s", r.code, r.stderr)
	}
	w.hostileText(t)
	w.evenAlive(t)
}

// elsewhere looks at the server's host from another one, as at a container from
// outside: the URL holds there.
func (w *world) elsewhere(t *testing.T) {
	there := strconv.Itoa(w.server.PID)
	urls := []string{w.secretFile(boss, bossPassword)}
	if w.server.engine == "postgresql" { // a socket of the file system is where it is
		urls = append(urls, fmt.Sprintf("postgres://%s:%s@/postgres?host=%s", boss, bossPassword, w.server.Folder))
	}
	for _, url := range urls {
		tied := 0
		r := w.deadpeerOn(w.desk, "sessions", "--netns", there, "--db", url, "-o", "jsonl")
		for _, one := range r.ties(t) {
			if one.Connection != nil {
				tied++
			}
		}
		if tied == 0 {
			t.Errorf("from another host: exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
	}
	if r := w.deadpeerOn(w.desk, "sessions", "--netns", "all", "--db", urls[0], "-o", "jsonl"); !strings.Contains(r.stderr, "connection refused") {
		t.Errorf("all: %s%s", r.stdout, r.stderr)
	}
}

// hostileText has a client run a statement that would clear a terminal.
func (w *world) hostileText(t *testing.T) {
	c := w.login()
	statement := map[string]string{
		"firebird": "SELECT '\x1b[2J\u202e' FROM RDB$DATABASE", "postgresql": "SELECT '\x1b[2J\u202e', pg_sleep(60)", "mariadb": "SELECT '\x1b[2J\u202e', SLEEP(60)",
		"mysql": "SELECT '\x1b[2J\u202e', SLEEP(60)",
	}[w.server.engine]
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := c.QueryContext(ctx, statement)
		if err != nil {
			return // canceled
		}
		<-ctx.Done() // a statement lasts as long as its rows
		_ = r.Close()
		_ = r.Err()
	}()
	defer func() {
		cancel()
		<-done
	}()
	db := w.secretFile(boss, bossPassword)
	servertest.Await(t, "the hostile statement", func() bool {
		out := w.deadpeer("sessions", "--db", db, "-o", "wide").stdout
		if strings.ContainsAny(out, "\x1b\u202e") {
			t.Fatalf("it reached the terminal: %q", out)
		}
		return strings.Contains(out, `\x1b[2J`)
	})
}

// evenAlive ends a living session that is named, and only when told to.
func (w *world) evenAlive(t *testing.T) {
	c := w.login()
	db := w.secretFile(boss, bossPassword)
	tx := w.begin(c)
	ok(t, touch(t.Context(), tx, rows-1))
	id := ""
	servertest.Await(t, "the session", func() bool { // InnoDB tells of what was up to 100 ms ago
		for _, one := range w.deadpeer("sessions", "--db", db, "-o", "jsonl", "dst", w.toDesk.IPv4(w.desk).String()).ties(t) {
			if one.Session.State == "idle in transaction" {
				id = one.Session.ID // no other client at the desk is
			}
		}
		return id != ""
	})
	release := func(more ...string) result {
		return w.deadpeer(append([]string{"release", "--yes", "--silence", "3s", "--db", db, "-o", "jsonl", "--session", id}, more...)...)
	}
	address := w.toDesk.IPv4(w.desk)
	if l := release().lines(t)[address]; l.Verdict != "alive" || l.Outcome != nil {
		t.Errorf("a living client was to be released: %+v", l)
	}
	ok(t, touch(t.Context(), tx, rows-1))
	r := release("--even-alive")
	if l := r.lines(t)[address]; l.Verdict != "alive" || l.Outcome == nil || !l.Outcome.Done || l.Outcome.Via != "database" {
		t.Errorf("session %s: exit code %d, %+v: %s", id, r.code, l, r.stderr)
	}
	if err := touch(t.Context(), tx, rows-1); err == nil {
		t.Error("its session goes on")
	}
	if r := release("--even-alive"); r.code != 1 || !strings.Contains(r.stderr, "no such session") {
		t.Errorf("gone: exit code %d, %s", r.code, r.stderr)
	}
}

// A pooler stands between: deadpeer names it, and takes nobody behind it for
// the client.
func (w *world) pooled(t *testing.T) {
	binary := servertest.Program(t, "pgbouncer", "/usr/sbin/pgbouncer")
	owner := servertest.Credential(t, "postgres")
	dir := servertest.Folder(t, owner)
	ok(t, os.WriteFile(filepath.Join(dir, "users"), fmt.Appendf(nil, "%q %q\n", boss, bossPassword), 0o644))
	ok(t, os.WriteFile(filepath.Join(dir, "ini"), fmt.Appendf(nil, `[databases]
postgres = host=127.0.0.1 port=5432 user=%s password=%s
[pgbouncer]
listen_addr = *
listen_port = 6432
unix_socket_dir =
auth_type = plain
auth_file = %s/users
pool_mode = session
ignore_startup_parameters = extra_float_digits
`, boss, bossPassword, dir), 0o644))
	servertest.Serve(t, w.host, owner, dir, nil, binary, filepath.Join(dir, "ini"))
	through := *w.server
	through.dsn = func(addr netip.Addr, user, password string) string {
		return fmt.Sprintf("postgres://%s:%s@%s/postgres?sslmode=disable", user, password, at(addr, 6432))
	}
	var c *conn
	servertest.Await(t, "pgbouncer", func() (up bool) {
		var err error
		c, err = dial(context.Background(), w.desk, &through, w.toDesk.IPv4(w.host))
		return err == nil
	})
	defer func() { ok(t, c.Close()) }()
	var pid int
	ok(t, c.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&pid))
	db := w.secretFile(boss, bossPassword)
	for _, filter := range []string{"", "sport = :5432"} { // the second leaves out the pooler's end
		seen := false
		for _, one := range w.deadpeer("sessions", "--db", db, "-o", "jsonl", filter).ties(t) {
			if one.Session.ID == fmt.Sprint(pid) {
				seen = strings.Contains(one.Leg, "pgbouncer") && one.Connection != nil && one.Connection.Peer.Addr().IsLoopback()
			}
		}
		if !seen {
			t.Errorf("filter %q: no session %d of pgbouncer", filter, pid)
		}
	}
	r := w.deadpeer("check", "--db", db, "-o", "jsonl", "sport = :5432")
	if !slices.ContainsFunc(decode[line](t, r), func(l line) bool {
		return l.Session != nil && l.Session.ID == fmt.Sprint(pid) && strings.Contains(l.Session.Client, "pgbouncer")
	}) {
		t.Errorf("check: %s%s", r.stdout, r.stderr)
	}
}
