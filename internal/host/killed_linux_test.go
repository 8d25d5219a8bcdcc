package host

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A change or its undoing is killed at every step, first or second, and the
// next restore, or the next set, mends it.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	second := map[Part]int64{Idle: 20, Retries2: 9}
	type kill struct {
		do   string
		step Step
		nth  int
	}
	kills := []kill{
		{"set", StepJournalled, 0}, {"set", StepSet, 0}, {"set", StepSet, 1}, {"set", StepFileWritten, 0}, {"set", StepFilePut, 0}, {"set", StepDone, 0},
		{"restore", StepPutBack, 0}, {"restore", StepPutBack, 1}, {"restore", StepPutBack, 3},
	}
	for _, k := range kills {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s %d, set before %v", k.do, k.step, k.nth, again), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.write(dropInPath, "vm.swappiness = 1\n")
				original := w.picture()
				if again || k.do == "restore" {
					w.set(lan())
				}
				before := w.picture()
				die := func() {
					t.Helper()
					r := w.role(k.do, second)
					r.KillAt, r.KillNth = k.step, k.nth
					out, err := process(t, r).CombinedOutput()
					if err == nil || !strings.Contains(err.Error(), "killed") {
						t.Fatalf("not killed: %v %q", err, out)
					}
				}
				die()
				touched := false
				for name, v := range w.picture() {
					touched = touched || before[name] != v
				}
				if want := k.step != StepJournalled; touched != want {
					t.Errorf("changed by then: %v, want %v", touched, want)
				}
				if s, err := w.host().Show(); err != nil || s.Changed.IsZero() || s.Interrupted == (k.step == StepDone) {
					t.Errorf("shown: changed %v, interrupted %v, %v", s.Changed, s.Interrupted, err)
				}
				w.restore()
				w.as(original, "restored")
				w.noJournal("restored")

				// Once more, and now another set comes first.
				if again || k.do == "restore" {
					w.set(lan())
				}
				die()
				interrupted := k.step != StepDone
				plan := w.set(map[Part]int64{Interval: 11})
				if (len(plan.Mended) > 0) != interrupted {
					t.Errorf("mended: %v", plan.Mended)
				}
				idle := "7200"
				switch {
				case k.step == StepDone:
					idle = "20"
				case k.do == "set" && again:
					idle = "30" // as before the change that was killed
				}
				if got := w.sysctl("net.ipv4.tcp_keepalive_time"); got != idle {
					t.Errorf("idle time %s, want %s", got, idle)
				}
				w.restore()
				w.as(original, "set, then restored")
				w.noJournal("set, then restored")
			})
		}
	}
}

// The process that mends what another left is killed, too.
func TestKilledMending(t *testing.T) {
	t.Parallel()
	for nth := range 3 {
		w := newWorld(t)
		original := w.picture()
		w.set(map[Part]int64{Idle: 500})
		before := w.picture()
		for _, r := range []role{
			{Values: lan(), KillAt: StepFilePut},
			{Values: map[Part]int64{Idle: 20}, KillAt: StepPutBack, KillNth: nth},
		} {
			r.Do, r.Root, r.State, r.Netns = "set", w.root, w.state, w.nsPath()
			if out, err := process(t, r).CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("not killed: %v %q", err, out)
			}
		}
		// A change that cannot be made leaves things as they were before both.
		h := w.host()
		h.sys = &failing{system: h.sys, at: "net.ipv4.tcp_retries2"}
		if _, err := h.Set(t.Context(), Change{Values: map[Part]int64{Retries2: 9}}); !errors.Is(err, unix.EIO) {
			t.Errorf("got %v", err)
		}
		w.as(before, "mended")
		w.restore()
		w.as(original, "restored")
		w.noJournal("restored")
	}
}
