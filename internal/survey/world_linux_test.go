package survey_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"deadpeer/internal/survey"
	"deadpeer/internal/testnet"
)

func TestMain(m *testing.M) {
	// Most tests wait most of the time.
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(testnet.Main(m))
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve accepts connections until the test ends, and has each handled.
func serve(t *testing.T, h *testnet.Host, addr netip.Addr, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := h.Listen(t.Context(), "tcp4", netip.AddrPortFrom(addr, 0).String())
	ok(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				handle(c)
				_, _ = io.Copy(io.Discard, c) // until the peer closes
				_ = c.SetLinger(0)            // what a NAT forgot cannot say good-bye
				_ = c.Close()
			}()
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func idle(*net.TCPConn) {}

// path is a client and a server, with or without a NAT between them.
type path struct {
	client *testnet.Host
	server netip.AddrPort
	nat    *testnet.NAT
	link   *testnet.Link // the server's
}

func newPath(t *testing.T, nat *testnet.NATOptions, handle func(*net.TCPConn)) path {
	t.Helper()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	var p path
	p.client, err = world.Host("client")
	ok(t, err)
	server, err := world.Host("server")
	ok(t, err)
	if nat != nil {
		p.nat, err = world.NAT(p.client, server, *nat)
		ok(t, err)
		p.link = p.nat.Outside
	} else {
		p.link, err = world.Connect(p.client, server)
		ok(t, err)
	}
	p.server = serve(t, server, p.link.IPv4(server), handle)
	return p
}

func (p path) dial(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	return p.client.Dial(ctx, "tcp4", addr.String())
}

// options are small enough for a test.
func (p path) options() survey.Options {
	return survey.Options{Addr: p.server, Max: 10 * time.Second, Resolution: time.Second, Connections: 5, Dial: p.dial}
}

// within checks that a survey found the truth, as exactly and as fast as it
// said beforehand.
func within(t *testing.T, o survey.Options, r survey.Result, took time.Duration, how survey.Outcome, truth time.Duration) {
	t.Helper()
	const late = 300 * time.Millisecond // a loaded machine
	if r.How != how {
		t.Fatalf("found %+v, want %s", r, how)
	}
	if r.Alive > truth+late || r.Gone < truth-late || r.Gone-r.Alive > o.Resolution+o.Resolution/10+late {
		t.Errorf("alive at %v, gone at %v; it is %v, to be found within %v", r.Alive, r.Gone, truth, o.Resolution)
	}
	plan, err := o.Plan()
	ok(t, err)
	// The first connection is asked after a second; connects are paced.
	if bound := plan.Bound(truth) + 5*time.Second; took > bound {
		t.Errorf("took %v, bound %v", took, bound)
	}
}

func TestForgottenSilently(t *testing.T) {
	t.Parallel()
	p := newPath(t, &testnet.NATOptions{Established: 4 * time.Second}, idle)
	o, start := p.options(), time.Now()
	o.Max, o.Connections = 8*time.Second, 3
	r, err := survey.Run(t.Context(), o)
	ok(t, err)
	within(t, o, r, time.Since(start), survey.Silent, 4*time.Second)
	if r.RTT <= 0 || r.RTT > time.Second || r.Unanswered != 0 || r.Questions == 0 {
		t.Errorf("result %+v", r)
	}
}

func TestForgottenWithReset(t *testing.T) {
	t.Parallel()
	p := newPath(t, &testnet.NATOptions{Established: 6 * time.Second, OnForgotten: testnet.Reset}, idle)
	o, start := p.options(), time.Now()
	r, err := survey.Run(t.Context(), o)
	ok(t, err)
	within(t, o, r, time.Since(start), survey.Reset, 6*time.Second)
}

// A NAT that takes any connection up again looks as if it never forgot: only
// what comes from the server is lost.
func TestNeverForgotten(t *testing.T) {
	t.Parallel()
	for name, nat := range map[string]*testnet.NATOptions{
		"no nat": nil, "loose": {Established: 3 * time.Second, Loose: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPath(t, nat, idle)
			o := p.options()
			o.Max = 8 * time.Second
			r, err := survey.Run(t.Context(), o)
			ok(t, err)
			if r.How != survey.Never || r.Alive != o.Max || r.Gone != 0 {
				t.Errorf("found %+v, want never", r)
			}
			if p, ok := r.Recommend(); ok {
				t.Errorf("recommends %+v", p)
			}
		})
	}
}

func TestServerCloses(t *testing.T) {
	t.Parallel()
	p := newPath(t, nil, func(c *net.TCPConn) {
		_ = c.SetReadDeadline(time.Now().Add(3500 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	})
	o, start := p.options(), time.Now()
	r, err := survey.Run(t.Context(), o)
	ok(t, err)
	within(t, o, r, time.Since(start), survey.Closed, 3500*time.Millisecond)
}

// One connection that ends for a reason of its own is not taken for the path.
func TestOneIsClosed(t *testing.T) {
	t.Parallel()
	var accepted atomic.Int32
	p := newPath(t, nil, func(c *net.TCPConn) {
		if accepted.Add(1) == 4 { // the third of the ladder
			time.Sleep(2 * time.Second)
			_ = c.Close()
		}
	})
	o := p.options()
	o.Max, o.Connections = 6*time.Second, 3
	r, err := survey.Run(t.Context(), o)
	ok(t, err)
	if r.How != survey.Never || r.Odd < 1500*time.Millisecond || r.Odd > 4*time.Second {
		t.Errorf("found %+v, want never, and that one was closed after 2s", r)
	}
}

// A greeting does not count as traffic; the server's own keepalive does.
func TestServerSpeaks(t *testing.T) {
	t.Parallel()
	p := newPath(t, nil, func(c *net.TCPConn) {
		time.Sleep(500 * time.Millisecond)
		_, _ = c.Write([]byte("220 good day\r\n"))
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: time.Second, Count: 3})
	})
	o, start := p.options(), time.Now()
	r, err := survey.Run(t.Context(), o)
	ok(t, err)
	within(t, o, r, time.Since(start), survey.Disturbed, 4*time.Second)
}

// Lost probes are repeated, and are not taken for forgotten connections.
func TestLossyPath(t *testing.T) {
	t.Parallel()
	p := newPath(t, nil, idle)
	o := p.options()
	o.Max, o.Connections, o.Resolution = 6*time.Second, 12, 500*time.Millisecond
	lossy := false
	o.Observe = func(e survey.Event) {
		if e.Pass == 1 && e.Observation == nil && !lossy {
			lossy = true
			time.AfterFunc(1500*time.Millisecond, func() { // when all are connected
				if err := p.link.Lossy(20, 20); err != nil {
					t.Error(err)
				}
			})
		}
	}
	r, err := survey.Run(t.Context(), o)
	ok(t, err)
	if r.How != survey.Never {
		t.Errorf("found %+v, want never", r)
	}
	if want := float64(r.Unanswered) / float64(r.Questions); r.Loss() < want/2 || r.Loss() > want {
		t.Errorf("loss %v one way, of %d of %d probes", r.Loss(), r.Unanswered, r.Questions)
	}
}

// Whoever is cut off from everything has found nothing.
func TestPathGoesDown(t *testing.T) {
	t.Parallel()
	p := newPath(t, nil, idle)
	o := p.options()
	o.Max = 4 * time.Second
	o.Dial = func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return p.dial(ctx, addr)
	}
	o.Observe = func(e survey.Event) {
		if e.Pass == 1 && e.Observation != nil { // all have been connected by then
			ok(t, p.link.Cut())
		}
	}
	r, err := survey.Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "no new one gets through") || r.How != "" {
		t.Errorf("found %+v, %v; want an error", r, err)
	}
}

// A survey that is interrupted goes on where it was.
func TestResume(t *testing.T) {
	t.Parallel()
	p := newPath(t, &testnet.NATOptions{Established: 4 * time.Second, OnForgotten: testnet.Reset}, idle)
	name := t.TempDir() + "/state"
	o := p.options()
	o.Save = func(s survey.State) error { return s.Write(name) }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Observe = func(e survey.Event) {
		if e.Gone > 0 { // of the first pass
			cancel()
		}
	}
	r, err := survey.Run(ctx, o)
	if !errors.Is(err, context.Canceled) || r.How != survey.Reset {
		t.Fatalf("%+v, %v; want a cancelled survey that knows of a reset", r, err)
	}
	o.Resume, err = survey.ReadState(name)
	ok(t, err)
	before := len(o.Resume.Observations)
	var rungs []time.Duration
	o.Observe = func(e survey.Event) {
		if rungs == nil {
			rungs = e.Rungs
		}
	}
	start := time.Now()
	r, err = survey.Run(t.Context(), o)
	ok(t, err)
	within(t, o, r, time.Since(start), survey.Reset, 4*time.Second)
	if before == 0 || len(rungs) == 0 || rungs[0] <= time.Second {
		t.Errorf("%d observations, and the rungs %v: it began anew", before, rungs)
	}
	o.Addr = netip.MustParseAddrPort("127.0.0.1:1")
	if _, err := survey.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the state is of") {
		t.Errorf("state of another server: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	p := newPath(t, nil, idle)
	o := p.options()
	o.Addr = netip.AddrPortFrom(o.Addr.Addr(), 1)
	if _, err := survey.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}
