package engine

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/internal/probe"
)

// mixed is a world with sockets that are asked by window probe and, being in
// CLOSE-WAIT, some that are asked by keepalive.
func mixed(t *testing.T) (w *world, established, closeWait []netip.AddrPort) {
	t.Helper()
	w = newWorld(t)
	ok(t, w.near.SetSysctl("net.ipv4.tcp_fin_timeout", "600")) // of what it closes
	established = w.connect("tcp4", w.near, 8)
	closeWait = w.connect("tcp4", w.near, 8)
	w.diversify()
	for _, p := range closeWait {
		ok(t, w.clients[p].Close())
	}
	time.Sleep(1100 * time.Millisecond) // keepalive cannot ask who was heard less than a second ago
	return w, established, closeWait
}

// A deadpeer is killed at every step of both ways to ask, and the next one,
// be it doctor --clean or a check, puts everything back.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	steps := []probe.Step{probe.StepJournalled, probe.StepAsked, probe.StepRestored, probe.StepForgotten}
	for name, mend := range map[string]func(w *world){
		"clean": func(w *world) { must(w.engine.Clean(w.t.Context()))(w.t) },
		"check": func(w *world) { w.check(w.t.Context(), w.request()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, established, closeWait := mixed(t)
			before := w.serverOptions()
			for _, filter := range []string{"state established", "state close-wait"} {
				for _, step := range steps {
					nth := 0
					if filter == "state established" && step == probe.StepAsked {
						nth = 5 // four without SO_REUSEADDR come first: nothing is changed on them
					}
					killed(t, w.child(role{Do: "check", Filter: filter, KillAt: step, KillNth: nth}))
					// The test itself must see the damage, where there is any.
					changed := 0
					for p, o := range w.serverOptions() {
						if o != before[p] {
							changed++
						}
					}
					damaged := step == probe.StepAsked
					if damaged != (changed > 0) {
						t.Errorf("%s, killed when %s: %d sockets are changed", filter, step, changed)
					}
					left, err := journal.Orphans(w.dir)
					if err != nil || damaged && len(left) == 0 {
						t.Errorf("%s, killed when %s: journals %v, %v", filter, step, left, err)
					}
					for _, o := range left {
						ok(t, o.Close())
					}
					mend(w)
					w.unchanged(before)
					nothingLeft(t, w.dir)
				}
			}
			got := w.check(t.Context(), w.request())
			expect(t, got, established, conn.Alive)
			expect(t, got, closeWait, conn.ClosingDown)
			w.unchanged(before)
		})
	}
}

// A window probe is killed between asking and putting back at each of the
// sockets in turn, and the sockets have moved to other descriptors meanwhile.
func TestKilledThenMoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peers := w.connect("tcp4", w.near, 6)
	before := w.serverOptions()
	for n := range peers {
		killed(t, w.child(role{Do: "check", KillAt: probe.StepAsked, KillNth: n}))
		cleared := 0
		for p, o := range w.serverOptions() {
			if o != before[p] {
				cleared++
				w.move(p, before[p])
			}
		}
		if cleared != 1 {
			t.Errorf("killed at socket %d: %d have lost SO_REUSEADDR, want 1", n, cleared)
		}
		if left := must(w.engine.Clean(t.Context()))(t); len(left) != 1 || !strings.HasSuffix(left[0].Done, "put back") {
			t.Errorf("cleaned %v", left)
		}
		w.unchanged(before)
		nothingLeft(t, w.dir)
	}
}

// Two deadpeers ask the same sockets at the same time, half of them cut off:
// the verdicts are right, SO_REUSEADDR survives, and the server can be
// started anew on its port.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	near, far := w.connect("tcp4", w.near, 30), w.connect("tcp4", w.far, 30)
	l := w.listener("tcp4")
	addr := l.Addr().String()
	before := w.serverOptions()
	for p, o := range before {
		if o.reuse == 0 {
			t.Fatalf("%s has no SO_REUSEADDR", p)
		}
	}
	ok(t, w.toFar.Cut())
	results := make(chan []line)
	for range 2 {
		go func() {
			defer func() { results <- nil }()
			list, _ := lines(t, w.child(role{Do: "check", Times: 2}))
			results <- list
		}()
	}
	total := 0
	for ended := 0; ended < 2; {
		list := <-results
		if list == nil {
			ended++
			continue
		}
		for _, l := range list {
			total++
			want := conn.Alive.String()
			if slices.Contains(far, netip.MustParseAddrPort(l.Peer)) {
				want = conn.Dead.String()
			}
			if l.Verdict != want {
				t.Errorf("%s: %s (%s), want %s", l.Peer, l.Verdict, l.Reason, want)
			}
		}
	}
	if want := 2 * 2 * (len(near) + len(far)); total != want {
		t.Errorf("%d verdicts, want %d", total, want)
	}
	w.unchanged(before)
	nothingLeft(t, w.dir)
	ok(t, l.Close())
	again, err := w.server.Listen(t.Context(), "tcp4", addr)
	if err != nil {
		t.Fatalf("start the server anew: %v", err)
	}
	ok(t, again.Close())
}
