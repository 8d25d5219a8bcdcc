package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/testnet"
	"deadpeer/internal/wire"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "demo" && os.Args[2] == LockServerCommand {
		if err := ServeLocks(context.Background(), os.Args[3], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testnet.Main(m))
}

// leftovers fails the test when a run leaves descriptors, files or its
// process behind. Namespaces end with the descriptors and processes.
func leftovers(t *testing.T) (check func(Result)) {
	t.Helper()
	// The runtime's poller keeps descriptors from its first use on.
	r, w, err := os.Pipe()
	if err := errors.Join(err, r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	before := descriptors(t)
	return func(r Result) {
		t.Helper()
		if r.ServerPID == 0 {
			t.Error("the lock server was not started")
		} else if err := unix.Kill(r.ServerPID, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("lock server %d: %v, want it gone", r.ServerPID, err)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			t.Errorf("left in the folder for temporary files: %v, %v", files, err)
		}
		if after := descriptors(t); after > before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestRun(t *testing.T) {
	check := leftovers(t)
	var out bytes.Buffer
	story := &Story{Out: &out}
	var steps []Step
	wires := map[Step][]Sight{}
	r, err := Run(t.Context(), Options{
		Trace: true,
		Observe: func(s Step, r *Result) {
			steps = append(steps, s)
			wires[s] = r.Wire
			story.Observe(s, r)
		},
		Progress: story.Progress,
	})
	if err != nil {
		t.Fatal(err)
	}
	check(r)
	t.Logf("\n%s", &out)
	for i, s := range steps {
		if s != Step(i) {
			t.Fatalf("steps %v are not in order", steps)
		}
	}
	if r.Reached != Over || len(steps) != int(Over)+1 {
		t.Errorf("reached %d by %v, want %d", r.Reached, steps, Over)
	}
	if r.Alive != Bystanders || r.Forecast != "never" || r.Owner != "lockserver" {
		t.Errorf("%d bystanders alive, forecast %q, owner %q", r.Alive, r.Forecast, r.Owner)
	}
	// tcp(7): 7200 s, 9 probes, 75 s apart, in every new namespace.
	if want := 2*time.Hour + 11*time.Minute + 15*time.Second; r.WithKeepAlive != want {
		t.Errorf("with keepalive %s, want %s", r.WithKeepAlive, want)
	}
	if len(r.Verdicts) != Bystanders+2 || r.Verdicts[0].Peer != r.Phantom || r.Verdicts[0].Verdict != conn.Dead {
		t.Errorf("verdicts %+v, want the phantom first, and dead", r.Verdicts)
	}
	times := []time.Duration{0, r.Conflict, r.Asked, r.Judged, r.Released, r.Regained}
	for i := 1; i < len(times); i++ {
		if times[i] <= times[i-1] {
			t.Errorf("times %v do not ascend", times)
		}
	}
	if !strings.Contains(r.Seen, r.Phantom.String()) || !strings.Contains(r.Seen, unix.ECONNABORTED.Error()) {
		t.Errorf("the lock server said %q, want the phantom's %v", r.Seen, unix.ECONNABORTED)
	}
	sees(t, r, wires[Judged])
	if w := wires[Released]; len(w) == 0 || w[len(w)-1].Kind != wire.GiveUp || w[len(w)-1].Peer != r.Phantom {
		t.Errorf("on the wire at the end: %+v, want the phantom's reset last", w)
	}
	tells(t, out.String(), "probe 1, unanswered", "probe 1, answered after", "reset: it is over", r.Answer, "2 h 11 m 15 s", r.Phantom.String(), r.Back.String(), "lockserver[", "never")
}

// sees wants every question of the check on the wire: the phantom's
// unanswered, the other's answered.
func sees(t *testing.T, r Result, wires []Sight) {
	t.Helper()
	unanswered, answers := 0, 0
	for _, w := range wires {
		switch {
		case w.Kind == wire.Unanswered && w.Peer == r.Phantom:
			unanswered++
			if w.N != unanswered {
				t.Errorf("probe %d is the phantom's %d.", w.N, unanswered)
			}
		case w.Kind == wire.Answer && w.Peer == r.Back && w.N == 1:
			answers++
		default:
			t.Errorf("on the wire: %+v", w)
		}
		if w.At < r.Asked-time.Second || w.At > r.Judged {
			t.Errorf("on the wire at %s: %+v; asked from %s to %s", w.At, w, r.Asked, r.Judged)
		}
	}
	if unanswered < r.Verdicts[0].Unanswered || answers == 0 {
		t.Errorf("%d unanswered and %d answered probes, want %d and some", unanswered, answers, r.Verdicts[0].Unanswered)
	}
}

// A demo whose link was not cut must fail, and release nobody.
func TestRunFails(t *testing.T) {
	check := leftovers(t)
	r, err := run(t.Context(), Options{}, func(*testnet.Link) error { return nil })
	check(r)
	if err == nil || !strings.Contains(err.Error(), "alive") {
		t.Errorf("got %v, want that the phantom is alive", err)
	}
	if r.Reached != Asking || r.Released != 0 {
		t.Errorf("reached step %d, released at %s", r.Reached, r.Released)
	}
	if j := r.Report(); !j.ConflictSeen || j.LockRegained || j.ReleasedAfterMS != nil || j.BystandersAlive != nil || *j.PhantomVerdict != "alive" {
		t.Errorf("report %+v", j)
	}
}

func TestRunInterrupted(t *testing.T) {
	for _, at := range []Step{Staged, Cut, Asking, Releasing} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			check := leftovers(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, err := Run(ctx, Options{Observe: func(s Step, _ *Result) {
				if s == at {
					cancel()
				}
			}})
			check(r)
			if err == nil || r.Reached != at {
				t.Errorf("got %v at step %d, want an error at step %d", err, r.Reached, at)
			}
		})
	}
}

// The demo runs for a user without any privilege, too.
func TestRunUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("TestRun has done it already")
	}
	const nobody = 65534
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestRun$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TMPDIR=/tmp", "GOCOVERDIR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	switch {
	case bytes.Contains(out, []byte("SKIP: ")):
		t.Skipf("%s", out)
	case err != nil || !bytes.Contains(out, []byte("--- PASS: TestRun")):
		t.Errorf("%v\n%s", err, out)
	}
}

func TestReport(t *testing.T) {
	r := Result{
		Reached: Over, Forecast: "never", Alive: 5, Verdicts: []Verdict{{Verdict: conn.Dead}},
		Asked: time.Millisecond, Judged: 3601 * time.Millisecond, Released: 7 * time.Second, Regained: 7001 * time.Millisecond,
	}
	for _, tt := range []struct {
		result Result
		want   string
	}{
		{r, `{"schema":1,"conflict_seen":true,"bystanders_alive":5,"phantom_verdict":"dead","phantom_forecast":"never",` +
			`"asked_to_verdict_ms":3600,"released_after_ms":7000,"lock_regained":true,"lock_regained_after_ms":7001}`},
		{Result{}, `{"schema":1,"conflict_seen":false,"bystanders_alive":null,"phantom_verdict":null,"phantom_forecast":null,` +
			`"asked_to_verdict_ms":null,"released_after_ms":null,"lock_regained":false,"lock_regained_after_ms":null}`},
	} {
		got, err := json.Marshal(tt.result.Report())
		if err != nil || string(got) != tt.want {
			t.Errorf("%v\n got %s\nwant %s", err, got, tt.want)
		}
	}
}
