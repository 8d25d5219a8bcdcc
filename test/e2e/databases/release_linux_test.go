package databases

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"deadpeer/internal/testnet"
)

func engines() map[string]func(testing.TB, *testnet.Host) *server {
	return map[string]func(testing.TB, *testnet.Host) *server{"Firebird": firebird, "PostgreSQL": postgres, "MariaDB": mariadb, "MySQL": mysql}
}

// The scene of the locked row, with every way out of it: the database's own,
// the socket, the kernel's keepalive, and none.
func TestPhantoms(t *testing.T) {
	t.Parallel()
	for name, start := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			phantoms(t, newWorld(t, start))
		})
	}
}

func phantoms(t *testing.T, w *world) {
	const (
		forgotten = iota // nobody does anything about it
		byDatabase
		bySocket
		byTune
		byAttach
		idle // the bystander's
	)
	left := w.phantom("left", forgotten)
	killed := w.phantom("killed", byDatabase)
	cut := w.phantom("cut", bySocket)
	bystander := w.login()
	tx := w.begin(bystander)
	ok(t, touch(t.Context(), tx, idle))

	remedied := w.classicRemedy(byTune, byAttach)

	// With the host's defaults a phantom stays.
	waitsForLeft := w.update(forgotten)
	ok(t, left.link.Cut())
	leftSince := time.Now()

	waitsForKilled, waitsForCut := w.update(byDatabase), w.update(bySocket)
	ok(t, killed.link.Cut())
	ok(t, cut.link.Cut())

	db := w.secretFile(boss, bossPassword)
	r := w.deadpeer("check", "--db", db, "-o", "jsonl", "sport = :"+strconv.Itoa(w.server.port))
	if !r.fine() {
		t.Errorf("check: exit code %d: %s", r.code, r.stderr)
	}
	got := r.lines(t)
	for name, p := range map[string]*phantom{"left": left, "killed": killed, "cut": cut} {
		l := got[p.addr]
		switch s := l.Session; {
		case l.Verdict != "dead" || s == nil:
			t.Fatalf("%s: %+v", name, l)
		case s.Engine != w.server.engine || s.State != "idle in transaction" || s.Age <= 0 || s.Age > 3600 || s.User != lowly || !s.locked(w.server.table):
			t.Errorf("%s: session %+v", name, s)
		}
	}
	w.expectBlocked(got[killed.addr].Session, db)

	r = w.deadpeer("release", "--yes", "--silence", "3s", "--db", db, "-o", "jsonl", "dst", killed.addr.String())
	released := time.Now()
	if o := r.lines(t)[killed.addr].Outcome; !r.fine() || o == nil || !o.Done || o.Via != "database" {
		t.Errorf("release: exit code %d, %+v: %s", r.code, o, r.stderr)
	}
	if late := waitsForKilled.within(t, 30*time.Second).Sub(released); late > 2*time.Second {
		t.Errorf("the row came free %s after the release", late)
	}
	if n := w.deadpeer("scan", "-o", "jsonl", "dst", killed.addr.String()).stdout; n != "" {
		t.Errorf("the database's end left a socket: %s", n)
	}

	// One who may not end sessions falls back on the socket, and says so.
	// Firebird tells such a one nothing at all.
	args := []string{"--db", w.secretFile(watch, watchPassword)}
	if w.server.engine == "firebird" {
		args = []string{"--db", db, "--via", "socket"}
	}
	r = w.deadpeer(append([]string{"release", "--yes", "--silence", "3s", "-o", "jsonl", "dst", cut.addr.String()}, args...)...)
	released = time.Now()
	if o := r.lines(t)[cut.addr].Outcome; o == nil || !o.Done || o.Via != "socket" {
		t.Errorf("release: exit code %d, %+v: %s", r.code, o, r.stderr)
	}
	if w.server.engine != "firebird" {
		contains(t, "the refusal", r.stderr, "GRANT", watch, "its socket was ended instead")
	}
	if late := waitsForCut.within(t, 30*time.Second).Sub(released); late > 2*time.Second {
		t.Errorf("the row came free %s after the release", late)
	}

	// The bystander, idle in its transaction all the time, goes on.
	r = w.deadpeer("check", "--db", db, "-o", "jsonl", "dst", w.toDesk.IPv4(w.desk).String())
	if !w.someIdle(r) {
		t.Errorf("no living session is idle in transaction:\n%s", r.stdout)
	}
	ok(t, touch(t.Context(), tx, idle))
	ok(t, tx.Commit())

	w.troubles(t)
	if w.server.engine == "postgresql" {
		w.pooled(t)
	}

	remedied()
	const longer = 60 * time.Second
	time.Sleep(longer - time.Since(leftSince))
	if waitsForLeft.got() {
		t.Errorf("with the defaults the row came free within %s: %v", time.Since(leftSince), waitsForLeft.err)
	}
}

// classicRemedy is profile lan scaled down, by both ways: the host's defaults,
// for who connects from now on, and on the connection of a phantom that is cut
// off already. What it gives waits until the kernel has let go, which is to be
// when the forecast says.
func (w *world) classicRemedy(byTune, byAttach int) (wait func()) {
	t := w.t
	t.Helper()
	policy := []string{"--idle", "20s", "--interval", "4s", "--probes", "5"}
	attached := w.phantom("attached", byAttach) // under the defaults
	if r := w.deadpeer(append([]string{"tune", "set"}, policy...)...); r.code != 0 {
		t.Fatalf("tune set: exit code %d: %s", r.code, r.stderr)
	}
	tuned := w.phantom("tuned", byTune)
	waits := map[string]*update{"tuned": w.update(byTune), "attached": w.update(byAttach)}
	ok(t, tuned.link.Cut())
	ok(t, attached.link.Cut())
	if r := w.deadpeer(append([]string{"attach", "dst", attached.addr.String()}, policy...)...); r.code != 0 {
		t.Fatalf("attach: exit code %d: %s", r.code, r.stderr)
	}
	asked := time.Now()
	r := w.deadpeer("scan", "--db", w.secretFile(boss, bossPassword), "-o", "jsonl", "dst", tuned.addr.String(), "or", "dst", attached.addr.String())
	answered := time.Now()
	type span struct{ earliest, latest time.Time }
	due := map[string]span{}
	for name, p := range map[string]*phantom{"tuned": tuned, "attached": attached} {
		l := r.lines(t)[p.addr]
		if l.Forecast == nil || !l.Forecast.GivesUp || l.Session == nil || !l.Session.locked(w.server.table) {
			t.Fatalf("%s: %s%s", name, r.stdout, r.stderr)
		}
		forecast := time.Duration(l.Forecast.In * float64(time.Second))
		const slack = 10 * time.Second // the machine may be busy
		due[name] = span{asked.Add(forecast - 500*time.Millisecond), answered.Add(forecast + slack)}
	}
	return func() {
		for name, s := range due {
			if free := waits[name].within(t, 60*time.Second); free.Before(s.earliest) || free.After(s.latest) {
				t.Errorf("%s: the row came free at %s, forecast %s to %s", name, free, s.earliest, s.latest)
			}
		}
	}
}

// expectBlocked holds the phantom to block one living session, which waits.
func (w *world) expectBlocked(s *session, db string) {
	w.t.Helper()
	if len(s.Blocks) != 1 {
		w.t.Errorf("%s blocks %q, want one", s.ID, s.Blocks)
		return
	}
	for _, one := range w.deadpeer("sessions", "--db", db, "-o", "jsonl").ties(w.t) {
		if one.Session.ID == s.Blocks[0] {
			if one.Session.State != "waiting" || !slices.Equal(one.Session.Waits, []string{s.ID}) {
				w.t.Errorf("the blocked session: %+v", one.Session)
			}
			return
		}
	}
	w.t.Errorf("no session %s", s.Blocks[0])
}

// someIdle reports whether one living connection has a session that is idle
// in its transaction.
func (w *world) someIdle(r result) bool {
	return slices.ContainsFunc(decode[line](w.t, r), func(l line) bool {
		return l.Verdict == "alive" && l.Session != nil && l.Session.State == "idle in transaction"
	})
}
