package databases

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"deadpeer/internal/servertest"
	"deadpeer/internal/testnet"
)

// world is a host with a database server, and a desk that stays in reach.
type world struct {
	t      testing.TB
	net    *testnet.Net
	host   *testnet.Host
	desk   *testnet.Host
	toDesk *testnet.Link
	server *server
}

func newWorld(t testing.TB, start func(testing.TB, *testnet.Host) *server) *world {
	t.Helper()
	w := &world{t: t, net: must(testnet.New(context.Background()))(t)}
	t.Cleanup(func() { ok(t, w.net.Close()) })
	w.host, w.desk = must(w.net.Host("server"))(t), must(w.net.Host("desk"))(t)
	w.toDesk = must(w.net.Connect(w.host, w.desk))(t)
	w.server = start(t, w.host)
	return w
}

// phantom is a client with a link of its own, that has changed a row and not
// committed.
type phantom struct {
	link *testnet.Link
	addr netip.Addr
	stop func() // ends the client
}

// phantom starts the engine's own client program on a host of its own, has it
// change a row, and waits until the lock is held and the last answer has been
// acknowledged: keepalive does nothing while data is in flight.
func (w *world) phantom(name string, row int) *phantom {
	w.t.Helper()
	host := must(w.net.Host(name))(w.t)
	p := &phantom{link: must(w.net.Connect(w.host, host))(w.t)}
	p.addr = p.link.IPv4(host)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := w.server.client(ctx, w.t, p.link.IPv4(w.host))
	stdin := must(cmd.StdinPipe())(w.t)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ok(w.t, host.Start(cmd))
	p.stop = func() {
		cancel()
		_ = stdin.Close()
		_ = cmd.Wait() // killed
	}
	p.stop = sync.OnceFunc(p.stop)
	w.t.Cleanup(p.stop)
	must(fmt.Fprintf(stdin, "%sUPDATE items SET v = v + 1 WHERE id = %d;\n", w.server.begin, row))(w.t)
	servertest.Await(w.t, "the lock of "+name, func() bool {
		s := w.sessionOf(p.addr)
		return s != nil && s.State == "idle in transaction" && len(s.Locks) > 0
	})
	time.Sleep(300 * time.Millisecond) // delayed acknowledgements
	return p
}

// session and the like are the JSON that deadpeer writes.
type session struct {
	Engine    string   `json:"engine"`
	ID        string   `json:"id"`
	User      string   `json:"user"`
	State     string   `json:"state"`
	Statement string   `json:"statement"`
	Age       float64  `json:"transaction_age_s"`
	Locks     []string `json:"locks"`
	Blocks    []string `json:"blocks"`
	Waits     []string `json:"waits_for"`
	Client    string   `json:"client"`
}

type line struct {
	Peer     netip.AddrPort `json:"peer"`
	Verdict  string         `json:"verdict"`
	Reason   string         `json:"reason"`
	Session  *session       `json:"session"`
	Forecast *struct {
		GivesUp bool    `json:"gives_up"`
		In      float64 `json:"in_s"`
	} `json:"forecast"`
	Outcome *struct {
		Via   string `json:"via"`
		Done  bool   `json:"done"`
		Error string `json:"error"`
	} `json:"outcome"`
}

type tie struct {
	Session    session `json:"session"`
	Leg        string  `json:"leg"`
	Connection *line   `json:"connection"`
}

// result is what a run of deadpeer said.
type result struct {
	code   int
	stdout string
	stderr string
}

// deadpeer runs it on the server's host.
func (w *world) deadpeer(args ...string) result {
	w.t.Helper()
	return w.deadpeerOn(w.host, args...)
}

func (w *world) deadpeerOn(host *testnet.Host, args ...string) result {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), role+"=1", "HOME=/nonexistent", "DEADPEER_DB=")
	cmd.Env = append(cmd.Env, w.server.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	ok(w.t, host.Start(cmd))
	if err := cmd.Wait(); err != nil {
		if _, isExit := errors.AsType[*exec.ExitError](err); !isExit {
			w.t.Fatal(err)
		}
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// secretFile holds one database URL.
func (w *world) secretFile(user, password string) string {
	w.t.Helper()
	name := filepath.Join(w.t.TempDir(), "url")
	ok(w.t, os.WriteFile(name, []byte("# of the tests\n"+w.server.url(user, password)+"\n"), 0o600))
	return "@" + name
}

// fine reports whether it said nothing, but perhaps that a process of this
// machine went away while it was looked at.
func (r result) fine() bool {
	return r.code == 0 && r.stderr == "" || strings.Contains(r.stderr, "some connections show no owner")
}

// decode reads JSON lines.
func decode[T any](t testing.TB, r result) (list []T) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(r.stdout))
	for decoder.More() {
		var one T
		if err := decoder.Decode(&one); err != nil {
			t.Fatalf("%v\n%s\n%s", err, r.stdout, r.stderr)
		}
		list = append(list, one)
	}
	return list
}

// lines reads connections by the address of their peer.
func (r result) lines(t testing.TB) map[netip.Addr]line {
	t.Helper()
	m := map[netip.Addr]line{}
	for _, l := range decode[line](t, r) {
		m[l.Peer.Addr().Unmap()] = l
	}
	return m
}

func (r result) ties(t testing.TB) []tie {
	t.Helper()
	return decode[tie](t, r)
}

// sessionOf gives the session of the client with that address, or nil.
func (w *world) sessionOf(addr netip.Addr) *session {
	w.t.Helper()
	r := w.deadpeer("sessions", "--db", w.secretFile(boss, bossPassword), "-o", "jsonl", "dst", addr.String())
	if !r.fine() {
		w.t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	for _, one := range r.ties(w.t) {
		return &one.Session
	}
	return nil
}

// update is a change that waits for a lock.
type update struct {
	done chan struct{} // closed when it has got through
	at   time.Time     // when; set before done is closed
	err  error
}

// update changes a row from the desk, and commits.
func (w *world) update(row int) *update {
	w.t.Helper()
	u := &update{done: make(chan struct{})}
	c := w.login()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(u.done)
		u.err = change(ctx, c, row)
		u.at = time.Now()
	}()
	w.t.Cleanup(func() {
		cancel()
		<-u.done
	})
	return u
}

// login gives a client at the desk.
func (w *world) login() *conn {
	w.t.Helper()
	c := must(dial(context.Background(), w.desk, w.server, w.toDesk.IPv4(w.host)))(w.t)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// begin gives a transaction that ends with the test at the latest: a client
// does not log out before.
func (w *world) begin(c *conn) *sql.Tx {
	w.t.Helper()
	tx := must(c.BeginTx(context.Background(), nil))(w.t)
	w.t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func change(ctx context.Context, c *conn, row int) error {
	tx, err := c.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := touch(ctx, tx, row); err != nil {
		return err
	}
	return tx.Commit()
}

func touch(ctx context.Context, tx *sql.Tx, row int) error {
	_, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE items SET v = v + 1 WHERE id = %d", row))
	return err
}

// got reports whether the update is through.
func (u *update) got() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// within waits for the update and says when it was through.
func (u *update) within(t testing.TB, d time.Duration) time.Time {
	t.Helper()
	select {
	case <-u.done:
	case <-time.After(d):
		t.Fatalf("still locked %s later", d)
	}
	if u.err != nil {
		t.Fatal(u.err)
	}
	return u.at
}

// locked reports whether a session's locks name the table.
func (s *session) locked(table string) bool {
	return slices.ContainsFunc(s.Locks, func(l string) bool { return strings.HasPrefix(l, table) })
}
