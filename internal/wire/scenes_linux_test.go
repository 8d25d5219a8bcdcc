package wire_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/testnet"
	"deadpeer/internal/wire"
	"deadpeer/keepalive"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

// stage is a server with a client, and a capture at the server.
type stage struct {
	server, client *testnet.Host
	link           *testnet.Link
	capture        *wire.Capture
}

func newStage(t *testing.T) *stage {
	t.Helper()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	s := &stage{}
	s.server, err = world.Host("server")
	ok(t, err)
	s.client, err = world.Host("client")
	ok(t, err)
	s.link, err = world.Connect(s.server, s.client)
	ok(t, err)
	s.capture, err = wire.OpenCapture(s.server.NS(), wire.CaptureOptions{})
	ok(t, err)
	t.Cleanup(func() { ok(t, s.capture.Close()) })
	return s
}

// connect gives both ends of a connection.
func (s *stage) connect(t *testing.T, addr netip.Addr) (server, client *net.TCPConn) {
	t.Helper()
	network := "tcp4"
	if addr.Is6() {
		network = "tcp6"
	}
	l, err := s.server.Listen(t.Context(), network, netip.AddrPortFrom(addr, 0).String())
	ok(t, err)
	defer func() { _ = l.Close() }()
	client, err = s.client.Dial(t.Context(), network, l.Addr().String())
	ok(t, err)
	server, err = l.AcceptTCP()
	ok(t, err)
	t.Cleanup(func() { _ = server.Close(); _ = client.Close() })
	return server, client
}

// watch captures until enough says so, and gives the events and the packets.
func (s *stage) watch(t *testing.T, enough func([]wire.Event) bool) (events []wire.Event, file []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	w, err := wire.NewWriter(&out)
	ok(t, err)
	tracker := wire.NewTracker(wire.TrackerOptions{})
	done := errors.New("enough")
	emit := func(e *wire.Event) { events = append(events, *e) }
	err = s.capture.Each(ctx, func(p *wire.Packet) error {
		ok(t, w.Write(p))
		var seg wire.Segment
		if p.Segment(&seg) == wire.Taken {
			tracker.Feed(&seg, emit)
		}
		if enough(events) {
			return done
		}
		return nil
	}, func(now time.Time) {
		tracker.Advance(now, emit)
		if enough(events) {
			cancel()
		}
	})
	if !errors.Is(err, done) && !enough(events) {
		t.Fatalf("watch: %v; events so far: %v", err, lines(events))
	}
	ok(t, w.Flush())
	return events, out.Bytes()
}

func count(events []wire.Event, kind wire.Kind) (n int) {
	for _, e := range events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

var policy = keepalive.Policy{Idle: time.Second, Interval: time.Second, Probes: 3}

// The first of the three scenes: every probe to a living peer is answered, and
// the count never gets beyond one.
func TestClientThatAnswers(t *testing.T) {
	t.Parallel()
	for _, family := range []string{"ipv4", "ipv6"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			addr := s.link.IPv4(s.server)
			if family == "ipv6" {
				addr = s.link.IPv6(s.server)
			}
			server, _ := s.connect(t, addr)
			ok(t, keepalive.Set(server, policy))
			events, file := s.watch(t, func(e []wire.Event) bool { return count(e, wire.Answer) == 3 })
			want := []string{"probe 1", "answer 1", "probe 1", "answer 1", "probe 1", "answer 1"}
			if got := lines(events); !slices.Equal(got, want) {
				t.Fatalf("events %v, want %v", got, want)
			}
			for i, e := range events {
				if e.Kind == wire.Answer && (e.RTT <= 0 || e.RTT > time.Second) {
					t.Errorf("answer after %v", e.RTT)
				}
				if e.Local != addrOf(server.LocalAddr()) || e.Peer != addrOf(server.RemoteAddr()) {
					t.Errorf("event %d is of %v to %v, want %v to %v", i, e.Local, e.Peer, server.LocalAddr(), server.RemoteAddr())
				}
			}
			spaced(t, events, wire.Probe, policy.Idle)
			sameFromFile(t, file, events)
		})
	}
}

// The second: the link is cut; the server probes as often as the policy says,
// and resets the connection when the forecast says.
func TestClientThatIsGone(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	server, _ := s.connect(t, s.link.IPv4(s.server))
	ok(t, keepalive.Set(server, policy))
	heard := time.Now()
	ok(t, s.link.Cut())
	events, file := s.watch(t, func(e []wire.Event) bool { return count(e, wire.GiveUp) == 1 })
	want := []string{"probe 1", "unanswered 1", "probe 2", "unanswered 2", "probe 3", "unanswered 3", "give_up 3"}
	if got := lines(events); !slices.Equal(got, want) {
		t.Fatalf("events %v, want %v", got, want)
	}
	spaced(t, events, wire.Probe, policy.Interval)
	f, err := forecast.For(forecast.SituationIdle, forecast.Input{KeepAlive: true, Policy: policy})
	ok(t, err)
	const slack = 500 * time.Millisecond // a loaded machine, and the connection was made before heard
	end := events[len(events)-1].Time.Sub(heard)
	if end < f.Earliest-slack || end > f.Latest+slack {
		t.Errorf("given up %v after the last segment, forecast %v to %v", end, f.Earliest, f.Latest)
	}
	sameFromFile(t, file, events)
}

// The third: the client answers the last probe, and the count starts anew.
func TestClientThatAnswersTheLastProbe(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	server, _ := s.connect(t, s.link.IPv4(s.server))
	// Twice the tracker's patience, so that there is time to heal the link.
	ok(t, keepalive.Set(server, keepalive.Policy{Idle: time.Second, Interval: 2 * time.Second, Probes: 3}))
	ok(t, s.link.Cut())
	var healed, again bool
	events, file := s.watch(t, func(e []wire.Event) bool {
		switch {
		case count(e, wire.Unanswered) == 2 && !healed:
			healed = true
			ok(t, s.link.Heal())
		case count(e, wire.Answer) == 1 && !again:
			again = true
			ok(t, s.link.Cut())
		}
		return count(e, wire.GiveUp) == 1
	})
	want := []string{
		"probe 1", "unanswered 1", "probe 2", "unanswered 2", "probe 3", "answer 3",
		"probe 1", "unanswered 1", "probe 2", "unanswered 2", "probe 3", "unanswered 3", "give_up 3",
	}
	if got := lines(events); !slices.Equal(got, want) {
		t.Fatalf("events %v, want %v", got, want)
	}
	sameFromFile(t, file, events)
}

// A peer that forgot the connection resets it at the first probe.
func TestClientThatRebooted(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	server, _ := s.connect(t, s.link.IPv4(s.server))
	ok(t, keepalive.Set(server, policy))
	ok(t, s.client.Reboot())
	events, _ := s.watch(t, func(e []wire.Event) bool { return count(e, wire.Reset) == 1 })
	if got, want := lines(events), []string{"probe 1", "reset 1"}; !slices.Equal(got, want) {
		t.Fatalf("events %v, want %v", got, want)
	}
	if e := events[1]; e.Local != addrOf(server.RemoteAddr()) || e.RTT <= 0 {
		t.Errorf("reset by %v after %v, want by %v", e.Local, e.RTT, server.RemoteAddr())
	}
}

// Data on its way to a lost peer is retransmitted, with ever more time between.
func TestRetransmissions(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	server, _ := s.connect(t, s.link.IPv4(s.server))
	ok(t, s.link.Cut())
	_, err := server.Write([]byte("anybody there?"))
	ok(t, err)
	events, file := s.watch(t, func(e []wire.Event) bool { return count(e, wire.Retransmission) == 4 })
	want := []string{"retransmission 1", "retransmission 2", "retransmission 3", "retransmission 4"}
	if got := lines(events); !slices.Equal(got, want) {
		t.Fatalf("events %v, want %v", got, want)
	}
	sameFromFile(t, file, events)
}

// A peer that reads nothing shuts its window, and is asked whether it opened.
func TestWindowProbes(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	server, _ := s.connect(t, s.link.IPv4(s.server)) // the client reads nothing
	go func() { _, _ = server.Write(make([]byte, 64<<20)) }()
	events, _ := s.watch(t, func(e []wire.Event) bool { return count(e, wire.WindowProbe) >= 2 })
	answered := slices.ContainsFunc(events, func(e wire.Event) bool { return e.Kind == wire.Answer && e.RTT > 0 })
	if !answered {
		t.Errorf("no window probe was answered: %v", lines(events))
	}
}

// What tcpdump wrote of the same packets gives the same events.
func TestSameAsTcpdump(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("tcpdump")
	if err != nil {
		program = "/usr/sbin/tcpdump"
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs tcpdump")
	}
	s := newStage(t)
	name := filepath.Join(t.TempDir(), "dump.pcap")
	// -Z root: it would else give its privileges up, and its access to the folder.
	dump := exec.Command(program, "-i", "any", "-w", name, "-U", "--immediate-mode", "-Z", "root", "tcp")
	var said bytes.Buffer
	dump.Stderr = &said
	ok(t, s.server.Start(dump))
	wait := time.Now().Add(20 * time.Second)
	for size := int64(0); size == 0 && time.Now().Before(wait); time.Sleep(20 * time.Millisecond) {
		if i, err := os.Stat(name); err == nil {
			size = i.Size()
		}
	}
	server, _ := s.connect(t, s.link.IPv4(s.server))
	ok(t, keepalive.Set(server, policy))
	time.Sleep(1500 * time.Millisecond)
	ok(t, s.link.Cut())
	events, _ := s.watch(t, func(e []wire.Event) bool { return count(e, wire.GiveUp) == 1 })
	time.Sleep(200 * time.Millisecond)
	ok(t, dump.Process.Signal(os.Interrupt))
	ok(t, dump.Wait())
	file, err := os.ReadFile(name)
	ok(t, err)
	sameFromFile(t, file, events)
}

// sameFromFile checks that a capture file gives the same events, their times
// being those of another capture.
func sameFromFile(t *testing.T, file []byte, want []wire.Event) {
	t.Helper()
	r, err := wire.NewReader(bytes.NewReader(file))
	ok(t, err)
	tracker := wire.NewTracker(wire.TrackerOptions{})
	var got []wire.Event
	emit := func(e *wire.Event) { got = append(got, *e) }
	ok(t, r.Each(t.Context(), func(s *wire.Segment) error {
		tracker.Feed(s, emit)
		return nil
	}))
	if n := r.Skipped(wire.Truncated) + r.Skipped(wire.UnknownLink) + r.Skipped(wire.Fragment); n > 0 {
		t.Errorf("skipped %d packets", n)
	}
	if !slices.Equal(lines(got), lines(want)) {
		t.Fatalf("from the file %v, live %v", lines(got), lines(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		const slack = 50 * time.Millisecond // each capture has its own timestamps
		if d := g.Time.Sub(w.Time).Abs(); g.Local != w.Local || g.Peer != w.Peer || d > slack {
			t.Errorf("event %d from the file %+v, live %+v", i, g, w)
		}
	}
}

// spaced checks the times between events of a kind.
func spaced(t *testing.T, events []wire.Event, kind wire.Kind, want time.Duration) {
	t.Helper()
	var last time.Time
	for _, e := range events {
		if e.Kind != kind {
			continue
		}
		const slack = 500 * time.Millisecond
		if d := e.Time.Sub(last); !last.IsZero() && (d < want-time.Millisecond || d > want+slack) {
			t.Errorf("%v %d came %v after the one before, want %v", kind, e.N, d, want)
		}
		last = e.Time
	}
}

func addrOf(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
