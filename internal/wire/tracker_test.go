package wire_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"deadpeer/internal/wire"
)

var (
	us    = netip.MustParseAddrPort("10.0.0.1:3050")
	them  = netip.MustParseAddrPort("10.0.0.9:40112")
	start = time.Unix(1_700_000_000, 0)
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lines(events []wire.Event) (list []string) {
	for _, e := range events {
		list = append(list, fmt.Sprintf("%v %d", e.Kind, e.N))
	}
	return list
}

// seg is a segment in short: who sent it, when, and its headers.
type seg struct {
	at       time.Duration
	fromPeer bool
	flags    wire.Flags
	seq, ack uint32
	payload  uint32
	window   uint16 // 0 is 100 here, shut is 0
	device   int32
}

const shut = 1<<16 - 1

func feed(t *testing.T, o wire.TrackerOptions, segs []seg) (got []wire.Event) {
	t.Helper()
	tracker := wire.NewTracker(o)
	emit := func(e *wire.Event) { got = append(got, *e) }
	for _, s := range segs {
		w := wire.Segment{
			Time: start.Add(s.at), Src: us, Dst: them, Flags: s.flags, Seq: s.seq, Ack: s.ack,
			Payload: s.payload, Window: s.window, Interface: s.device,
		}
		if s.fromPeer {
			w.Src, w.Dst = them, us
		}
		if w.Flags == 0 {
			w.Flags = wire.ACK
		}
		switch s.window {
		case 0:
			w.Window = 100
		case shut:
			w.Window = 0
		}
		tracker.Feed(&w, emit)
	}
	tracker.Advance(start.Add(time.Hour), emit)
	return got
}

func TestTracker(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, c := range map[string]struct {
		segs []seg
		want []string
	}{
		"a lone segment without data tells nothing": {
			[]seg{{at: 0, seq: 99, ack: 500}}, nil,
		},
		"an answer proves what it answers to have been a probe": {
			[]seg{{at: 0, seq: 99, ack: 500}, {at: s / 1000, fromPeer: true, seq: 500, ack: 100}},
			[]string{"probe 1", "answer 1"},
		},
		"an acknowledgement of less does not": {
			[]seg{{at: 0, seq: 100, ack: 500}, {at: s / 1000, fromPeer: true, seq: 500, ack: 100}}, nil,
		},
		"so does a second one after an interval": {
			[]seg{{at: 0, seq: 99, ack: 500}, {at: 10 * s, seq: 99, ack: 500}},
			[]string{"probe 1", "unanswered 1", "probe 2", "unanswered 2"},
		},
		"but not one in quick succession": {
			[]seg{{at: 0, seq: 100, ack: 500}, {at: s / 100, seq: 100, ack: 500}}, nil,
		},
		"and not where the peer was heard between": {
			[]seg{
				{at: 0, seq: 100, ack: 500},
				{at: s, fromPeer: true, seq: 500, ack: 100, payload: 8, flags: wire.ACK | wire.PSH},
				{at: 2 * s, seq: 100, ack: 508},
			}, nil,
		},
		"a probe with a garbage byte": {
			[]seg{
				{at: 0, fromPeer: true, seq: 500, ack: 100},
				{at: 10 * s, seq: 99, ack: 500, payload: 1},
				{at: 10*s + s/100, fromPeer: true, seq: 500, ack: 100},
			}, []string{"probe 1", "answer 1"},
		},
		"sequence numbers wrap": {
			[]seg{
				{at: 0, seq: 0xfffffff0, ack: 500, payload: 16, flags: wire.ACK | wire.PSH},
				{at: s / 10, fromPeer: true, seq: 500, ack: 0},
				{at: 10 * s, seq: 0xffffffff, ack: 500},
				{at: 10*s + s/100, fromPeer: true, seq: 500, ack: 0},
				{at: 20 * s, seq: 0, ack: 500, payload: 4},
				{at: 21 * s, seq: 0, ack: 500, payload: 4},
			}, []string{"probe 1", "answer 1", "retransmission 1"},
		},
		"a late answer is one": {
			[]seg{
				{at: 0, fromPeer: true, seq: 500, ack: 100},
				{at: 10 * s, seq: 99, ack: 500},
				{at: 13 * s, fromPeer: true, seq: 500, ack: 100},
			}, []string{"probe 1", "unanswered 1", "answer 1"},
		},
		"data from the peer proves it alive as well": {
			[]seg{
				{at: 0, fromPeer: true, seq: 500, ack: 100},
				{at: 10 * s, seq: 99, ack: 500},
				{at: 20 * s, seq: 99, ack: 500},
				{at: 25 * s, fromPeer: true, seq: 500, ack: 100, payload: 5},
				{at: 40 * s, seq: 99, ack: 505},
			}, []string{"probe 1", "unanswered 1", "probe 2", "unanswered 2", "answer 2", "probe 1", "unanswered 1"},
		},
		"both sides may probe": {
			[]seg{
				{at: 0, fromPeer: true, seq: 500, ack: 100},
				{at: 0, seq: 100, ack: 500},
				{at: 10 * s, seq: 99, ack: 500},
				{at: 10*s + s/10, fromPeer: true, seq: 500, ack: 100},
				{at: 11 * s, fromPeer: true, seq: 499, ack: 100},
				{at: 11*s + s/10, seq: 100, ack: 500},
			}, []string{"probe 1", "answer 1", "probe 1", "answer 1"},
		},
		"a segment captured on two interfaces is one": {
			[]seg{
				{at: 0, fromPeer: true, seq: 500, ack: 100, device: 3},
				{at: 0, fromPeer: true, seq: 500, ack: 100, device: 2},
				{at: 10 * s, seq: 99, ack: 500, device: 2},
				{at: 10 * s, seq: 99, ack: 500, device: 3},
				{at: 20 * s, seq: 99, ack: 500, device: 2},
				{at: 20 * s, seq: 99, ack: 500, device: 3},
			}, []string{"probe 1", "unanswered 1", "probe 2", "unanswered 2"},
		},
		"the window": {
			[]seg{
				{at: 0, seq: 100, ack: 500, payload: 10},
				{at: s / 10, fromPeer: true, seq: 500, ack: 110, window: shut},
				{at: s, seq: 109, ack: 500},
				{at: s + s/10, fromPeer: true, seq: 500, ack: 110, window: shut},
				{at: 2 * s, seq: 110, ack: 500, payload: 1}, // as BSD asks
				{at: 2*s + s/10, fromPeer: true, seq: 500, ack: 110},
				{at: 9 * s, seq: 109, ack: 500},
			},
			[]string{"window_probe 1", "answer 1", "window_probe 1", "answer 1", "probe 1", "unanswered 1"},
		},
		"retransmissions, and what overtook on the way is none": {
			[]seg{
				{at: 0, seq: 100, ack: 500, payload: 10},
				{at: s / 1000, seq: 100, ack: 500, payload: 5},
				{at: s, seq: 100, ack: 500, payload: 10},
				{at: 3 * s, seq: 100, ack: 500, payload: 20}, // with new data behind
				{at: 4 * s, fromPeer: true, seq: 500, ack: 120},
				{at: 5 * s, seq: 120, ack: 500, flags: wire.ACK | wire.FIN},
				{at: 6 * s, seq: 120, ack: 500, flags: wire.ACK | wire.FIN},
			}, []string{"retransmission 1", "retransmission 2", "answer 2", "retransmission 1"},
		},
		"a SYN again": {
			[]seg{
				{at: 0, seq: 99, flags: wire.SYN},
				{at: s, seq: 99, flags: wire.SYN},
				{at: 3 * s, seq: 99, flags: wire.SYN},
				{at: 4 * s, fromPeer: true, flags: wire.RST | wire.ACK, ack: 100},
			}, []string{"retransmission 1", "retransmission 2", "reset 0"},
		},
		"a port used again": {
			[]seg{
				{at: 0, fromPeer: true, seq: 500, ack: 100},
				{at: s, seq: 99, ack: 500},
				{at: s + s/10, fromPeer: true, seq: 500, flags: wire.RST},
				{at: s + s/5, fromPeer: true, seq: 500, flags: wire.RST},
				{at: 9 * s, seq: 7000, flags: wire.SYN},
				{at: 9*s + s/10, fromPeer: true, seq: 900, ack: 7001, flags: wire.SYN | wire.ACK},
				{at: 9*s + s/5, seq: 7001, ack: 901},
				{at: 19 * s, seq: 7000, ack: 901},
				{at: 19*s + s/10, fromPeer: true, seq: 901, ack: 7001},
			}, []string{"probe 1", "reset 1", "probe 1", "answer 1"},
		},
		"giving up after retransmissions": {
			[]seg{
				{at: 0, seq: 100, ack: 500, payload: 10},
				{at: s, seq: 100, ack: 500, payload: 10},
				{at: 3 * s, seq: 110, ack: 500, flags: wire.RST},
			}, []string{"retransmission 1", "give_up 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := lines(feed(t, wire.TrackerOptions{}, c.segs)); !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

// A peer that answered a moment ago need not answer again (net.ipv4.tcp_invalid_ratelimit).
func TestRateLimited(t *testing.T) {
	t.Parallel()
	events := feed(t, wire.TrackerOptions{}, []seg{
		{at: 0, fromPeer: true, seq: 500, ack: 100},
		{at: time.Second, seq: 99, ack: 500},
		{at: 1001 * time.Millisecond, fromPeer: true, seq: 500, ack: 100},
		{at: 1300 * time.Millisecond, seq: 99, ack: 500},
		{at: 2400 * time.Millisecond, seq: 99, ack: 500},
	})
	var limited []bool
	for _, e := range events {
		if e.Kind == wire.Unanswered {
			limited = append(limited, e.RateLimited)
		}
	}
	if !slices.Equal(limited, []bool{true, false}) {
		t.Errorf("rate limited %v, want the first only; %v", limited, lines(events))
	}
}

func TestTimesOfEvents(t *testing.T) {
	t.Parallel()
	events := feed(t, wire.TrackerOptions{Patience: 2 * time.Second}, []seg{
		{at: 0, fromPeer: true, seq: 500, ack: 100},
		{at: 10 * time.Second, seq: 99, ack: 500},
		{at: 20 * time.Second, seq: 99, ack: 500},
		{at: 20*time.Second + 3*time.Millisecond, fromPeer: true, seq: 500, ack: 100},
	})
	want := []wire.Event{
		{Kind: wire.Probe, Time: start.Add(10 * time.Second), Local: us, Peer: them, N: 1},
		{Kind: wire.Unanswered, Time: start.Add(12 * time.Second), Local: us, Peer: them, N: 1, About: wire.Probe, Sent: start.Add(10 * time.Second)},
		{Kind: wire.Probe, Time: start.Add(20 * time.Second), Local: us, Peer: them, N: 2},
		{
			Kind: wire.Answer, Time: start.Add(20*time.Second + 3*time.Millisecond), Local: us, Peer: them, N: 2,
			RTT: 3 * time.Millisecond, About: wire.Probe, Sent: start.Add(20 * time.Second),
		},
	}
	if !slices.Equal(events, want) {
		t.Errorf("got  %+v\nwant %+v", events, want)
	}
}

func TestSelectAndForget(t *testing.T) {
	t.Parallel()
	asked := 0
	tracker := wire.NewTracker(wire.TrackerOptions{Flows: 2, Select: func(a, _ netip.AddrPort) bool {
		asked++
		return a.Port() != 2
	}})
	events := 0
	emit := func(*wire.Event) { events++ }
	for i := range 3 { // each flow in turn, so that three never fit into two
		for port := range uint16(3) {
			s := wire.Segment{
				Time: start.Add(time.Duration(i) * 10 * time.Second), Flags: wire.ACK, Seq: 99, Ack: 1, Window: 9,
				Src: netip.AddrPortFrom(us.Addr(), port+1), Dst: them,
			}
			tracker.Feed(&s, emit)
		}
	}
	if asked != 9 || tracker.Forgotten() != 7 || events != 0 {
		t.Errorf("asked %d times, forgot %d, %d events; want 9, 7, 0", asked, tracker.Forgotten(), events)
	}
}

// A tracker in use allocates nothing.
func TestFeedAllocatesNothing(t *testing.T) {
	tracker := wire.NewTracker(wire.TrackerOptions{})
	at, probe := start, false
	emit := func(*wire.Event) {}
	var s wire.Segment
	if n := testing.AllocsPerRun(1000, func() {
		s = wire.Segment{Time: at, Src: us, Dst: them, Flags: wire.ACK, Seq: 99, Ack: 500, Window: 9}
		if probe = !probe; !probe {
			s.Src, s.Dst, s.Seq, s.Ack = them, us, 500, 100
		}
		tracker.Feed(&s, emit)
		at = at.Add(time.Second)
	}); n != 0 {
		t.Errorf("%v allocations a segment", n)
	}
}

func FuzzTracker(f *testing.F) {
	f.Add([]byte{0x10, 99, 0, 0x90, 100, 0, 0x10, 99, 10, 0x04, 99, 11})
	f.Add([]byte{0x02, 0, 0, 0x92, 0, 0, 0x11, 1, 1, 0x91, 1, 2, 0x10, 255, 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		tracker := wire.NewTracker(wire.TrackerOptions{Flows: 3})
		at := start
		open := map[[2]netip.AddrPort]int{} // probes not yet resolved
		emit := func(e *wire.Event) {
			k := [2]netip.AddrPort{e.Local, e.Peer}
			switch e.Kind {
			case wire.Probe, wire.WindowProbe:
				open[k]++
			case wire.Unanswered:
				if open[k]--; open[k] < 0 {
					t.Fatalf("%+v without a probe", e)
				}
			}
			if e.N < 0 || e.RTT < 0 || e.Kind.String() == "unknown" {
				t.Fatalf("impossible event %+v", e)
			}
		}
		for ; len(b) >= 3; b = b[3:] {
			at = at.Add(time.Duration(b[2]) * 100 * time.Millisecond)
			s := wire.Segment{
				Time: at, Src: us, Dst: them, Flags: wire.Flags(b[0] & 0x3f), Seq: uint32(int8(b[1])), Ack: uint32(b[1] >> 2),
				Payload: uint32(b[2] & 3), Window: uint16(b[2] & 4), Interface: int32(b[2] & 8),
			}
			if b[0]&0x80 != 0 {
				s.Src, s.Dst = s.Dst, s.Src
			}
			if b[0]&0x40 != 0 {
				s.Src = netip.AddrPortFrom(s.Src.Addr(), uint16(b[1]))
			}
			tracker.Feed(&s, emit)
		}
		tracker.Advance(at.Add(time.Hour), emit)
	})
}
