package programs

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/testnet"
)

// A static program is started with a policy: its connections have it from the
// first moment, its own calls hold unless the policy is enforced, in which
// case they may make it stronger only; and, cut off, each ends when the
// forecast says, or never.
func TestRunStatic(t *testing.T) {
	t.Parallel()
	world := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, world.Close()) })
	server, client := must(world.Host("server"))(t), must(world.Host("client"))(t)
	link := must(world.Connect(server, client))(t)
	l := must(server.Listen(t.Context(), "tcp4", "0.0.0.0:7000"))(t)
	t.Cleanup(func() { _ = l.Close() })
	h := newDeadpeerHost(t, client)
	dial := goBuild(t, h.dir, "dial")
	const (
		policy = "[1 2 1 3]"
		strong = "[1 1 1 2]"
		off    = "[0 3600 60 9]"
	)
	type run struct {
		mode    string
		enforce bool
		own     string // what the connection has in the end
		out     *output
		cmd     *exec.Cmd
		port    uint16
	}
	runs := []*run{
		{mode: "none", own: policy}, {mode: "none", enforce: true, own: policy},
		{mode: "weak", own: off}, {mode: "weak", enforce: true, own: policy},
		{mode: "strong", own: strong}, {mode: "strong", enforce: true, own: strong},
	}
	var ends []func()
	to := netip.AddrPortFrom(link.IPv4(server), 7000).String()
	for _, r := range runs {
		args := []string{"deadpeer", "run", "--idle", "2s", "--interval", "1s", "--probes", "3"}
		if r.enforce {
			args = append(args, "--enforce")
		}
		r.out = &output{}
		r.cmd = h.command(append(args, "--", dial, r.mode, to)...)
		r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
		ok(t, r.cmd.Start())
		end := sync.OnceFunc(func() { _, _ = r.cmd.Process.Kill(), r.cmd.Wait() })
		t.Cleanup(end)
		ends = append(ends, end)
	}
	for range runs {
		c := must(l.AcceptTCP())(t)
		t.Cleanup(func() { _ = c.Close() })
	}
	for _, r := range runs {
		must(fmt.Sscanf(await(t, r.out, "port "), "port %d", &r.port))(t)
		await(t, r.out, "given "+policy)
		await(t, r.out, "own "+r.own+" <nil>")
	}

	text, said := h.output(t, "deadpeer", "attach", "list", "-o", "json")
	type listed struct {
		Program string
		Open    int
		Given   uint64
		Limited uint64 `json:"limited_calls"`
		Rules   []struct{ Enforce bool }
	}
	var list struct{ Attachments []listed }
	ok(t, json.Unmarshal([]byte(text), &list))
	if len(list.Attachments) != len(runs) {
		t.Fatalf("%d programs are listed, want %d: %s%s", len(list.Attachments), len(runs), text, said)
	}
	for _, r := range runs {
		program := fmt.Sprintf("dial[%d]", r.cmd.Process.Pid) // deadpeer has become the program
		limited := r.enforce && r.mode == "weak"
		if n := slices.IndexFunc(list.Attachments, func(a listed) bool { return a.Program == program }); n < 0 {
			t.Errorf("%s is not among %s", program, text)
		} else if a := list.Attachments[n]; a.Open != 1 || a.Given != 1 || a.Rules[0].Enforce != r.enforce || a.Limited > 0 != limited {
			t.Errorf("%s, enforce %v: listed as %+v", r.mode, r.enforce, a)
		}
	}
	if _, said = h.output(t, "deadpeer", "attach", "list"); !strings.Contains(said, "calls of programs would have weakened it and did not") {
		t.Errorf("attach list said %q", said)
	}
	if _, said = h.output(t, "deadpeer", "detach"); !strings.Contains(said, "6 programs started by deadpeer run: the policy of such a program stays until it ends") {
		t.Errorf("detach said %q", said)
	}

	e := engine.New(engine.Options{RuntimeDir: h.dir + "/none"})
	req := engine.Request{Netns: nsPath(client), Settings: true, Filter: must(conn.ParseFilter([]string{"dport = :7000"}, conn.Resolver{}))(t)}
	scanned := time.Now()
	due := map[uint16]engine.Connection{}
	for c := range must(e.Scan(t.Context(), req))(t).All() {
		due[c.Sock.LocalPort] = *c
	}
	ok(t, link.Cut())
	cut := time.Now()
	for _, r := range runs {
		c := due[r.port]
		f, known := c.Forecast()
		if r.own == off {
			if !known || f.GivesUp {
				t.Errorf("%s: forecast %+v, want never", r.mode, f)
			}
			continue
		}
		if !known || !f.GivesUp || f.Errno != "ETIMEDOUT" {
			t.Errorf("%s: forecast %+v, known %v", r.mode, f, known)
		}
		// A probe may have been answered since: then it takes as long from there.
		var on, idle, interval, probes int
		must(fmt.Sscanf(r.own, "[%d %d %d %d]", &on, &idle, &interval, &probes))(t)
		latest := time.Duration(idle+interval*probes) * time.Second
		const slack = 5 * time.Second // the machine may be busy
		line := await(t, r.out, "ended ")
		if time.Since(scanned) < f.Earliest-100*time.Millisecond || time.Since(cut) > latest+slack || !strings.HasSuffix(line, " connection timed out") {
			t.Errorf("%s, enforce %v: %s, %v after the cut, forecast %v to %v", r.mode, r.enforce, line, time.Since(cut), f.Earliest, f.Latest)
		}
	}
	for _, r := range runs {
		if r.own == off && strings.Contains(r.out.String(), "ended") {
			t.Errorf("%s: %s", r.mode, r.out)
		}
	}
	for _, end := range ends { // that of the last one, too
		end()
	}
	h.nothingLeft(t)
}

// await waits until a line begins so, and gives it.
func await(t *testing.T, o *output, want string) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for line := range strings.Lines(o.String()) {
			if strings.HasPrefix(line, want) && strings.HasSuffix(line, "\n") {
				return strings.TrimSuffix(line, "\n")
			}
		}
	}
	t.Fatalf("did not say %q: %s", want, o)
	return ""
}

func nsPath(h *testnet.Host) string { return fmt.Sprintf("/proc/self/fd/%d", h.NS().Fd()) }
