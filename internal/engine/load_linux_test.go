package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/load"
	"deadpeer/keepalive"
)

// lasting is how many clients keep their connections.
const lasting = 16

// underLoad is what a child of role load does until its input ends.
func underLoad() error {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	r, err := load.Run(ctx, load.Options{Lasting: lasting, Fresh: 8, Rate: 10_000})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// An application under load, attached to at both ends, does not notice that
// policies come and go on its connections, those it has and those it makes
// meanwhile.
func TestAttachNewUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup, hooks := testCgroup(t), hookDir(t)
	const enter = `ip link set lo up && echo 0 >"$1/cgroup.procs" && exec "$2"`
	cmd := exec.Command("sh", "-c", enter, "sh", must(bpf.CgroupRoot())(t)+cgroup, must(os.Executable())(t))
	cmd.Env = append(os.Environ(), roleVariable+"="+role{Do: "load", Kin: true}.String())
	cmd.Stderr = os.Stderr
	in, out := must(cmd.StdinPipe())(t), &strings.Builder{}
	cmd.Stdout = out
	ok(t, w.server.Start(cmd))
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = in.Close()
			_ = cmd.Wait()
		}
	})
	w.open(Options{HookDir: hooks, ProcRoot: procRoot(t, cmd.Process.Pid)})
	req := w.filtered("state established")
	req.Settings = true
	settings := func() map[uint64]keepalive.Settings {
		m := map[uint64]keepalive.Settings{}
		for c := range must(w.engine.Scan(t.Context(), req))(t).All() {
			if c.Known {
				m[c.Sock.Cookie] = c.Settings
			}
		}
		return m
	}
	wait(t, "all clients", func() bool { return len(settings()) >= 2*lasting })
	time.Sleep(300 * time.Millisecond)
	before := settings()
	attach := func(rule AttachRule) {
		t.Helper()
		rule.Policy = minute()
		a := must(w.engine.Attach(t.Context(), AttachRequest{Request: req, Rules: []AttachRule{rule}}))(t)
		if a.Changed < 2*lasting {
			complain(t, a)
		}
		time.Sleep(200 * time.Millisecond)
	}
	detach := func() {
		t.Helper()
		if done := w.detach(); len(done) != 1 || done[0].Failed != 0 || done[0].Changed < 2*lasting {
			t.Errorf("%d done", len(done))
			for _, d := range done {
				complain(t, d)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, from := range []int{1, 1 << 30} { // by BPF, by pidfd_getfd
		w.engine.bpfFrom = from
		attach(AttachRule{})
		detach()
		attach(AttachRule{New: true, Enforce: true, Cgroup: cgroup})
		if list := must(w.engine.Attachments(t.Context()))(t); len(list) != 1 || list[0].Given == 0 || list[0].NotGiven != 0 {
			t.Errorf("%+v", list)
		}
		detach()
	}
	stayed := 0
	for cookie, s := range settings() {
		if was, known := before[cookie]; known {
			if stayed++; s != was {
				t.Errorf("%d has %+v, had %+v", cookie, s, was)
			}
		}
	}
	if stayed < 2*lasting {
		t.Errorf("%d connections lasted, want %d", stayed, 2*lasting)
	}
	nothingLeft(t, w.dir)
	ended = true
	ok(t, in.Close())
	ok(t, cmd.Wait())
	var r load.Report
	ok(t, json.Unmarshal([]byte(out.String()), &r))
	if r.Requests == 0 || r.Connections <= lasting+8 {
		t.Errorf("%+v", r)
	}
	t.Logf("%d requests on %d connections in %v", r.Requests, r.Connections, r.Took)
}

// A program under load notices nothing of being attached and detached: no
// error, no byte lost.
func TestAttachUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 8)
	before := w.serverOptions()
	for _, p := range peers {
		go func() { _, _ = io.Copy(w.servers[p], w.servers[p]) }() // ends with the connection
	}
	stop := make(chan struct{})
	type result struct {
		requests int
		err      error
	}
	results := make(chan result, len(peers))
	for _, p := range peers {
		go func() {
			c, n := w.clients[p], 0
			for {
				select {
				case <-stop:
					results <- result{n, nil}
					return
				default:
				}
				sent := fmt.Appendf(nil, "request %10d of %s", n, p)
				got := make([]byte, len(sent))
				_, err := c.Write(sent)
				if err == nil {
					_, err = io.ReadFull(c, got)
				}
				if err == nil && string(got) != string(sent) {
					err = fmt.Errorf("got %q for %q", got, sent)
				}
				if err != nil {
					results <- result{n, err}
					return
				}
				n++
			}
		}()
	}
	p := minute()
	for round := range 20 {
		p.UserTimeout = -1
		if round%2 == 1 {
			p.UserTimeout = time.Minute
		}
		if a := w.attach(w.request(), p); a.Changed != len(peers) || a.Failed != 0 {
			t.Errorf("%+v", a)
		}
		w.have(peers, p, before)
		w.detach()
		w.unchanged(before)
	}
	close(stop)
	for range peers {
		if r := <-results; r.err != nil || r.requests == 0 {
			t.Errorf("after %d requests: %v", r.requests, r.err)
		}
	}
}

// complain says what was not done.
func complain(t *testing.T, a *Attached) {
	t.Helper()
	t.Errorf("%d of %d changed, %d ended, %d failed", a.Changed, a.Matched, a.Ended, a.Failed)
	for c := range a.Snapshot.All() {
		if o := c.Outcome; o != nil && o.Error != "" {
			t.Errorf("%s %s: %+v", c.Sock.State, c.Sock.Peer(), *o)
		}
	}
}
