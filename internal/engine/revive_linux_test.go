package engine

import (
	"cmp"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/release"
	"deadpeer/internal/testnet"
	"deadpeer/internal/wire"
)

// A machine stands still for a while, as a paused VM does, then goes on: its
// connections are held to be dead at most, and are not planned for release.
// Neither is one whose silence is not long enough yet.
func TestReleaseAfterOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	near, paused, gone := w.connect("tcp4", w.near, 5), w.connect("tcp4", w.far, 10), w.connect("tcp4", w.far, 5)
	ok(t, w.toFar.CutPorts(ports(append(slices.Clone(paused), gone...))...))
	r := w.request()
	r.Rules.Silence = 8 * time.Second
	resumed := false
	r.Progress = func(p Progress) { // when all of them are held to be dead
		if resumed || p.Dead < len(paused)+len(gone) {
			return
		}
		resumed = true
		ok(t, w.toFar.HealPorts(ports(paused)...))
		for _, p := range paused[:5] { // of the others the next question is answered
			must(w.clients[p].Write([]byte("x")))(t)
		}
	}
	p := w.plan(r)
	if !resumed {
		t.Error("they were never held to be dead")
	}
	ok(t, p.Act(t.Context()))
	got := byPeer(p.Snapshot)
	expect(t, got, near, conn.Alive)
	expect(t, got, paused, conn.Alive)
	expect(t, got, gone, conn.Dead)
	expectOutcomes(t, got, paused, "-")
	expectOutcomes(t, got, gone, "done")
	for _, peer := range paused {
		if w.aborted(peer) {
			t.Errorf("%s: ended", peer)
		}
	}

	// A minute is not over: nothing is released.
	gone = w.connect("tcp4", w.far, 3)
	ok(t, w.toFar.CutPorts(ports(gone)...))
	r = w.request()
	r.Rules.Silence, r.Timeout = time.Minute, -1
	snap := w.check(t.Context(), r)
	expect(t, snap, gone, conn.Dead)
	for _, peer := range gone {
		c := snap[peer]
		if allowed, why := release.Decide(release.Candidate{Verdict: c.Judgement.Verdict, Why: c.Judgement.Why, Silence: c.Evidence.Silence}, r.Rules); allowed || !strings.Contains(why, "release needs 60 s") {
			t.Errorf("%s: %v, %q", peer, allowed, why)
		}
	}
}

// A peer that was silent for long enough comes back while others are still
// being asked, and says nothing by itself: it is asked once more, and lives.
func TestReleaseBackMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	slow, back, gone := w.connect("tcp4", w.near, 2), w.connect("tcp4", w.far, 3), w.connect("tcp4", w.far, 3)
	ok(t, w.toNear.Cut())
	ok(t, w.toFar.CutPorts(ports(append(slices.Clone(back), gone...))...))
	nl := w.netlink(w.server)
	_, device := w.toNear.Interface(w.server)
	dev := must(nl.LinkByIndex(device))(t)
	addr := must(netlink.ParseAddr("10.9.9.9/24"))(t)
	r := w.request()
	healed := false
	r.Progress = func(p Progress) {
		switch {
		case p.Elapsed < 3*time.Second: // keep spoiling what the slow ones are asked
			ok(t, nl.AddrAdd(dev, addr))
			ok(t, nl.AddrDel(dev, addr))
		case p.Elapsed > 4500*time.Millisecond && !healed:
			healed = true
			ok(t, w.toFar.HealPorts(ports(back)...))
		}
	}
	p := w.plan(r)
	if !healed {
		t.Error("the plan was made before the link was healed")
	}
	ok(t, p.Act(t.Context()))
	got := byPeer(p.Snapshot)
	expect(t, got, back, conn.Alive)
	expectOutcomes(t, got, back, "-")
	expectOutcomes(t, got, append(slow, gone...), "done")
	for _, peer := range back {
		if w.aborted(peer) {
			t.Errorf("%s: ended", peer)
		}
	}
}

// Peers come back at random moments around the act, by BPF and without. None
// of those is destroyed that had been heard 5 ms before or earlier, by the
// packets on the wire; and the dead are, all of them.
func TestReleaseRevived(t *testing.T) {
	t.Parallel()
	const waves, size = 4, 250
	for wave := range waves {
		t.Run(strconv.Itoa(wave), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.engine.options.NoBPF = wave%2 == 0
			peers := w.connect("tcp4", w.far, size)
			ok(t, w.toFar.Cut())
			p := w.plan(w.request())
			around := 60 * time.Millisecond
			if start := time.Now(); !w.engine.options.NoBPF {
				if program, err := bpf.OpenEnder(1); err == nil {
					ok(t, program.Close())
					around += 2 * time.Since(start) // Act will take as long before it ends anything
				}
			}
			if p.Len() != size {
				t.Fatalf("%d planned", p.Len())
			}
			record := must(w.toFar.Record())(t)
			ok(t, w.toFar.Heal())
			early, never := peers[:size/10], peers[size/10:size/5]
			type revival struct {
				at   time.Duration
				peer netip.AddrPort
			}
			var list []revival
			for _, peer := range early {
				must(w.clients[peer].Write([]byte("x")))(t)
			}
			for _, peer := range peers[size/5:] {
				list = append(list, revival{time.Duration(rand.Int64N(int64(around))), peer})
			}
			slices.SortFunc(list, func(a, b revival) int { return cmp.Compare(a.at, b.at) })
			for _, peer := range early { // it has arrived
				must(io.ReadFull(w.servers[peer], make([]byte, 1)))(t)
			}
			time.Sleep(20 * time.Millisecond)
			start := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for _, r := range list {
					time.Sleep(time.Until(start.Add(r.at)))
					_, _ = w.clients[r.peer].Write([]byte("x"))
				}
			}()
			time.Sleep(20 * time.Millisecond)
			ok(t, p.Act(t.Context()))
			<-done
			got := byPeer(p.Snapshot)
			expectOutcomes(t, got, early, release.ErrHeard.Error())
			destroyed := 0
			for _, peer := range peers {
				o := got[peer].Outcome
				switch {
				case o == nil:
					t.Errorf("%s: no outcome", peer)
				case o.Done:
					destroyed++
				case o.Error != release.ErrHeard.Error() && o.Error != release.ErrTooSlow.Error():
					t.Errorf("%s: %+v", peer, o)
				case slices.Contains(never, peer) && o.Error != release.ErrTooSlow.Error():
					t.Errorf("%s: never revived, but %+v", peer, o)
				}
				if o != nil && !o.Done && w.aborted(peer) {
					t.Errorf("%s: ended, but %+v", peer, o)
				}
			}
			left := w.judgeByWire(record, got, p.byBPF > 0)
			t.Logf("%d destroyed, %d of them by BPF, %d left alone", destroyed, p.byBPF, left)
			if p.byBPF > 0 && (p.byBPF != destroyed || w.engine.options.NoBPF) {
				t.Errorf("%d of %d by BPF, NoBPF %v", p.byBPF, destroyed, w.engine.options.NoBPF)
			}
		})
	}
}

// judgeByWire holds every outcome to the packets: the server's first RST is
// the moment it destroyed, the client's first segment the moment it came back.
// An RST acknowledges what the server's kernel had received by then. By BPF
// that is nothing new. Without, a stall of this machine between two system
// calls may make one batch late.
func (w *world) judgeByWire(record *testnet.Recorder, got map[netip.AddrPort]Connection, byBPF bool) (left int) {
	w.t.Helper()
	heard, ended := map[netip.AddrPort]testnet.Segment{}, map[netip.AddrPort]testnet.Segment{}
	collect := func() bool {
		clear(heard)
		clear(ended)
		for _, s := range record.Segments() {
			switch {
			case s.From == w.far && heard[s.Src].Time.IsZero():
				heard[s.Src] = s
			case s.From == w.server && s.Flags.Has(wire.RST) && ended[s.Dst].Time.IsZero():
				ended[s.Dst] = s
			}
		}
		for peer, c := range got {
			if c.Outcome != nil && c.Outcome.Done && ended[peer].Time.IsZero() {
				return false
			}
		}
		return true
	}
	wait(w.t, "the RST of every socket destroyed", collect)
	late, latest := 0, time.Duration(0)
	for peer, c := range got {
		h, e := heard[peer], ended[peer]
		received := !h.Time.IsZero() && int32(e.Ack-h.Seq) > 0
		switch {
		case c.Outcome == nil || !c.Outcome.Done:
			left++
			if !e.Time.IsZero() {
				w.t.Errorf("%s: %+v, but it was ended", peer, c.Outcome)
			}
		case received && byBPF:
			w.t.Errorf("%s: destroyed although the kernel had received %v: %v", peer, h, e)
		case received && e.Time.Sub(h.Time) > release.Reread:
			late, latest = late+1, max(latest, e.Time.Sub(h.Time))
		}
	}
	if late > release.Batch || latest > 100*time.Millisecond {
		w.t.Errorf("%d were destroyed more than %s after they were heard, up to %s", late, release.Reread, latest)
	}
	return left
}
