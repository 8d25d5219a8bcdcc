package engine

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/attach"
	"deadpeer/internal/conn"
	"deadpeer/internal/probe"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
	"deadpeer/keepalive"
)

// roleVariable makes the test binary another deadpeer, see child.
const roleVariable = "DEADPEER_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		os.Exit(runRole())
	}
	// Most tests wait most of the time.
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(testnet.Main(m))
}

// role is what a child does: check, plan or scan, once or several times.
type role struct {
	Do      string
	Netns   string
	Dir     string
	Filter  string
	Times   int
	Rules   verdict.Rules
	Policy  keepalive.Policy
	Hooks   string
	Cgroup  string     // for hooks; to be entered first by a program to run
	KillAt  probe.Step // kill -9 of itself when this step
	KillNth int        // comes for the nth time, from 0
	Kin     bool       // stays a child of the test, whose sockets it then protects
	Proc    string     // of the test
	Idle    int64      // to tune to
	State   string     // for the journal of that
	Parent  int        // set on the way: the process to be orphaned by
}

func (r role) String() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// line is what a child says of a connection.
type line struct {
	PID      int // in the first line only: its own
	Round    int
	Peer     string
	Cookie   uint64
	State    string
	Verdict  string
	Why      verdict.Why
	Reason   string
	Owners   int
	Known    bool
	Released bool
	Outcome  string   // its error
	Notes    []string // of the last line only, which tells of no connection
	Held     []string
	Denied   bool
	Last     bool
}

func runRole() int {
	var r role
	if err := json.Unmarshal([]byte(os.Getenv(roleVariable)), &r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !r.Kin && r.Parent == 0 {
		// An orphan does not have the test among its ancestors.
		r.Parent = os.Getpid()
		cmd := r.command(context.Background())
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	for r.Parent != 0 && os.Getppid() == r.Parent {
		time.Sleep(time.Millisecond)
	}
	if r.Do == "hold" { // a descriptor inherited, under the name of Filter
		if err := os.WriteFile("/proc/self/comm", []byte(r.Filter), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return 0
	}
	if r.Do == "load" {
		if err := underLoad(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if r.Do == "hooks" {
		fmt.Fprintln(os.Stderr, r.hookLoop(context.Background()))
		return 1
	}
	if r.Do == "run" { // becomes the shell that runs Filter
		fmt.Fprintln(os.Stderr, r.runProgram(context.Background()))
		return 1
	}
	if err := r.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r role) run(ctx context.Context) error {
	filter, err := conn.ParseFilter(strings.Fields(r.Filter), conn.Resolver{})
	if err != nil {
		return err
	}
	nth := 0
	if r.Proc != "" {
		self := strconv.Itoa(os.Getpid())
		if err := os.Symlink("/proc/"+self, filepath.Join(r.Proc, self)); err != nil {
			return err
		}
	}
	step := func(s probe.Step) {
		if s != r.KillAt {
			return
		}
		if nth++; nth > r.KillNth {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	e := New(Options{RuntimeDir: r.Dir, ProcRoot: r.Proc, StateDir: r.State, Step: step, AttachStep: func(s attach.Step) { step(probe.Step(s)) }})
	e.cgroups = r.Dir
	req := Request{Netns: r.Netns, Filter: filter, Rules: r.Rules}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(line{PID: os.Getpid()}); err != nil {
		return err
	}
	last := line{Last: true}
	for round := range max(r.Times, 1) {
		var snap *Snapshot
		switch r.Do {
		case "scan":
			snap, err = e.Scan(ctx, req)
		case "check":
			snap, err = e.Check(ctx, req)
		case "tune":
			change := TuneChange{Values: map[TunePart]int64{TuneIdle: r.Idle}}
			_, err = e.Tune(ctx, TuneRequest{Netns: r.Netns, Change: change, Existing: true})
			snap = &Snapshot{}
		case "attach":
			var done *Attached
			if done, err = e.Attach(ctx, AttachRequest{Request: req, Rules: []AttachRule{{Policy: r.Policy}}}); err == nil {
				snap, last.Denied = done.Snapshot, done.Denied
			}
		case "detach":
			_, err = e.Detach(ctx)
			snap = &Snapshot{}
		case "release":
			var plan *Plan
			if plan, err = e.Plan(ctx, req); err == nil {
				err = plan.Act(ctx)
				_ = plan.Close()
				snap, last.Held = plan.Snapshot, plan.Held
			}
		default:
			err = fmt.Errorf("no role %q", r.Do)
		}
		if err != nil {
			return err
		}
		for _, n := range snap.Notes {
			last.Notes = append(last.Notes, n.Text)
		}
		for c := range snap.All() {
			var outcome Outcome
			if c.Outcome != nil {
				outcome = *c.Outcome
			}
			err := out.Encode(line{
				Outcome: outcome.Error, Round: round, Peer: unmap(c.Sock.Peer()).String(), Cookie: c.Sock.Cookie, State: c.Sock.State.String(), Verdict: c.Judgement.Verdict.String(),
				Why: c.Judgement.Why, Reason: c.Reason(), Owners: len(c.Owners), Known: c.Known, Released: outcome.Done,
			})
			if err != nil {
				return err
			}
		}
	}
	return out.Encode(last)
}

// command is this program in a role, named in a way that users can run who may
// not enter the folder it lies in.
func (r role) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+r.String())
	cmd.Stderr = os.Stderr
	return cmd
}

// child is another deadpeer process in a role.
func (w *world) child(r role, env ...string) *exec.Cmd {
	w.t.Helper()
	if r.Netns == "" {
		r.Netns = w.nsPath()
	}
	if r.Dir == "" {
		r.Dir = w.dir
	}
	if !r.Kin { // an orphan has no ancestors to be found
		r.Proc = procRoot(w.t)
	}
	cmd := r.command(w.t.Context())
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// lines runs a child to its end.
func lines(t *testing.T, cmd *exec.Cmd) (list []line, last line) {
	t.Helper()
	_, list, last = untilEOF(t, cmd)
	if !last.Last {
		t.Errorf("the helper did not come to its end")
	}
	return list, last
}

// untilEOF waits until nobody holds the output open any more.
func untilEOF(t *testing.T, cmd *exec.Cmd) (pid int, list []line, last line) {
	t.Helper()
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("helper: %v", err)
	}
	for text := range strings.Lines(string(out)) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Errorf("helper said %q: %v", text, err)
		}
		switch {
		case l.PID != 0:
			pid = l.PID
		case l.Last:
			last = l
		default:
			list = append(list, l)
		}
	}
	return pid, list, last
}

// killed runs a child that kills itself.
func killed(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	pid, list, last := untilEOF(t, cmd)
	if last.Last || len(list) > 0 {
		t.Fatal("the helper came to its end")
	}
	// Its output ends a moment before it does.
	wait(t, "end of the helper", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

const nobody = 65534
