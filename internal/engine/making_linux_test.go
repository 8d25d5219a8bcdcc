package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"deadpeer/internal/attach"
	"deadpeer/internal/bpf"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// Interrupted, attach puts everything back, also what an older attachment had.
func TestAttachInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 4)
	before := w.serverOptions()
	first := w.attach(w.request(), minute())
	ctx, cancel := context.WithCancel(t.Context())
	w.open(Options{ProcRoot: procRoot(t), AttachStep: func(s attach.Step) {
		if s == attach.StepApplied {
			cancel()
		}
	}})
	p := minute()
	p.UserTimeout = time.Hour
	_, err := w.engine.Attach(ctx, AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: p}}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w.have(peers, minute(), before)
	list := must(w.engine.Attachments(t.Context()))(t)
	if len(list) != 1 || list[0].ID != first.ID || list[0].Sockets != 4 {
		t.Errorf("%+v", list)
	}
	w.detach()
	w.unchanged(before)
}

// interrupting ends itself when it has been asked a number of times whether it
// has ended.
type interrupting struct {
	context.Context
	end  func()
	left atomic.Int32
}

func (c *interrupting) Err() error {
	if c.left.Add(-1) < 0 {
		c.end()
	}
	return c.Context.Err()
}

// interruptions calls do with contexts that end ever later, until one does not.
func interruptions(t *testing.T, do func(ctx context.Context)) {
	t.Helper()
	for n := int32(0); ; n++ {
		c := &interrupting{}
		c.Context, c.end = context.WithCancel(t.Context())
		c.left.Store(n)
		do(c)
		ended := c.Context.Err() != nil
		c.end()
		if !ended {
			return
		}
		if n > 1000 {
			t.Fatal("it never comes to its end")
		}
	}
}

// What was attached later counts as the newer, and has what the older had,
// though the clock was set back in between.
func TestAttachClockSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.connect("tcp4", w.near, 1)
	b := must(attach.About{At: time.Now().Add(time.Hour), Rules: []attach.Rule{{Policy: minute(), New: true}}}.Encode())(t)
	older := must(journal.CreateAttachment(w.dir, "0", b))(t)
	ok(t, errors.Join(older.SetWhole(true), older.Close()))
	newer := w.attach(w.request(), minute())
	if ids := must(w.engine.AttachmentIDs())(t); !slices.Equal(ids, []string{"0", newer.ID}) {
		t.Errorf("%v, want %s last", ids, newer.ID)
	}
}

// Wherever attach is interrupted, it has done all or nothing.
func TestAttachAllOrNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	before := w.serverOptions()
	interruptions(t, func(ctx context.Context) {
		_, err := w.engine.Attach(ctx, AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute()}}})
		if err != nil {
			w.unchanged(before)
			nothingLeft(t, w.dir)
			return
		}
		w.have(peers, minute(), before)
		if list := must(w.engine.Attachments(t.Context()))(t); len(list) != 1 || list[0].Half || list[0].Sockets != 3 {
			t.Errorf("%+v", list)
		}
		w.detach()
	})
}

// hookOfOthers keeps programs in our cgroup from weakening a policy on what it
// is told to hold.
func hookOfOthers(t *testing.T, p keepalive.Policy) *bpf.Hook {
	t.Helper()
	h := must(bpf.AttachHook(bpf.HookOptions{
		Dir: hookDir(t), ID: "other", Cgroup: must(ownCgroup())(t), Rules: []bpf.Rule{{Local: bpf.Ports{Low: 1, High: 1}, Policy: p, Enforce: true}},
	}))(t)
	t.Cleanup(func() { ok(t, h.Remove()) })
	return h
}

// What an interrupted attach cannot put back is said, and left to detach.
func TestAttachNotUndone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 3)
	before := w.serverOptions()
	other := hookOfOthers(t, minute())
	ctx, cancel := context.WithCancel(t.Context())
	w.open(Options{ProcRoot: procRoot(t), HookDir: w.dir + "/none", AttachStep: func(s attach.Step) {
		if s == attach.StepApplied {
			control(t, w.servers[peers[0]], func(fd int) { ok(t, other.Hold(fd, minute())) })
			cancel()
		}
	}})
	_, err := w.engine.Attach(ctx, AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute()}}})
	list := must(w.engine.Attachments(t.Context()))(t)
	if len(list) != 1 || !list[0].Half || list[0].Sockets != 1 {
		t.Fatalf("%+v", list)
	}
	for _, part := range []string{context.Canceled.Error(), "1 connection could not be put back", "deadpeer detach " + list[0].ID} {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("%v, want %q", err, part)
		}
	}
	ok(t, other.Stop())
	if done := w.detach(); len(done) != 1 || done[0].Changed != 1 {
		t.Errorf("%+v", done)
	}
	w.unchanged(before)
	nothingLeft(t, w.dir)
}

// Interrupted, attach takes back at once what its hooks gave meanwhile.
func TestAttachNewInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cgroup, hooks := testCgroup(t), hookDir(t)
	m := newMaker(t, cgroup, w.server.Start)
	m.do("make", "0 7200 75 9 0")
	ctx, cancel := context.WithCancel(t.Context())
	w.open(Options{ProcRoot: procRoot(t, m.cmd.Process.Pid), HookDir: hooks, AttachStep: func(s attach.Step) {
		if s == attach.StepApplied {
			m.do("make", "1 40 5 4 0")
			m.do("queue", "1 40 5 4 0")
			cancel()
		}
	}})
	rule := AttachRule{Policy: minute(), New: true, Cgroup: cgroup, Filter: filter(t, "sport = :7000 or dport = :7000")}
	_, err := w.engine.Attach(ctx, AttachRequest{Request: w.request(), Rules: []AttachRule{rule}})
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "undo") {
		t.Errorf("got %v", err)
	}
	m.do("accept", "0 7200 75 9 0")
	m.do("show first", "0 7200 75 9 0")
	m.do("show first", "0 7200 75 9 0")
	if left := must(bpf.Hooks(hooks))(t); len(left) != 0 {
		t.Errorf("%d hooks are left", len(left))
	}
	nothingLeft(t, w.dir)
}
