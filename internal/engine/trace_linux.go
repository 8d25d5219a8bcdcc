package engine

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/netns"
	"deadpeer/internal/wire"
)

// lookEvery is how long what the sockets told is good for before an unknown
// one among them makes us look again.
const lookEvery = time.Second

var errTraceAll = errors.New("trace: one network namespace at a time; give its name, path or the pid of a process in it")

// Trace tells of the keepalive probes of a namespace, their answers and what
// comes of them, until ctx ends or visit gives an error. A Traced is the
// callee's until it returns. Needs CAP_NET_RAW in the namespace; policies and
// owners are told as far as Scan tells them.
func (e *Engine) Trace(ctx context.Context, req TraceRequest, visit func(*Traced) error) (*TraceStats, error) {
	ns, err := e.namespace(req.Netns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	capture, err := wire.OpenCapture(ns, wire.CaptureOptions{Interface: req.Interface})
	if err != nil {
		return nil, err
	}
	defer func() { _ = capture.Close() }()
	t := &trace{e: e, ctx: ctx, req: req, visit: visit, hz: jiffies.HZ()}
	t.tracker = wire.NewTracker(wire.TrackerOptions{Select: t.selects})
	if err := t.look(); err != nil {
		return nil, err
	}
	if req.Started != nil {
		req.Started()
	}
	var s wire.Segment
	err = capture.Each(ctx, func(p *wire.Packet) error {
		if p.Segment(&s) != wire.Taken || !t.tracker.Feed(&s, t.emit) || req.Save == nil {
			return t.err
		}
		return errors.Join(t.err, req.Save.Write(p))
	}, func(now time.Time) { t.tracker.Advance(now, t.emit) })
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = t.err
	}
	t.stats.Forgotten = t.tracker.Forgotten()
	counts, statsErr := capture.Stats()
	t.stats.CaptureStats = counts
	return &t.stats, errors.Join(err, statsErr)
}

// namespace opens the one that a request names.
func (e *Engine) namespace(name string) (*netns.NS, error) {
	switch name {
	case "", "current":
		return netns.Current()
	case "all":
		return nil, errTraceAll
	}
	if pid, err := strconv.Atoi(name); err == nil {
		return netns.FromPID(e.options.ProcRoot, pid)
	}
	if !strings.Contains(name, "/") {
		return netns.FromName(name)
	}
	return netns.FromPath(name)
}

// trace is a running Trace.
type trace struct {
	e       *Engine
	ctx     context.Context
	req     TraceRequest
	visit   func(*Traced) error
	tracker *wire.Tracker
	hz      int
	sockets map[endpoints]*tracedSocket // that the filter selects, as of looked
	looking time.Time                   // when looking began last
	looked  time.Time                   // and ended
	stats   TraceStats
	traced  Traced
	err     error // of visit
}

type endpoints struct{ local, peer netip.AddrPort }

type tracedSocket struct {
	TracedSocket
	probes int // unanswered, by the kernel's count when we looked
	missed int // of them before the trace saw any
}

// selects reports whether a connection may be one to trace; which side is
// local is not known yet.
func (t *trace) selects(a, b netip.AddrPort) bool {
	return t.req.Filter == nil || t.req.Filter.Endpoints(a, b) != conn.No || t.req.Filter.Endpoints(b, a) != conn.No
}

// look lists the sockets anew.
func (t *trace) look() error {
	t.looking = time.Now()
	snap, err := t.e.Scan(t.ctx, Request{Netns: t.req.Netns, Filter: t.req.Filter, Settings: true})
	if err != nil {
		return err
	}
	t.stats.Notes = snap.Notes
	old := t.sockets
	t.sockets = make(map[endpoints]*tracedSocket, snap.Len())
	for c := range snap.All() {
		s := &tracedSocket{TracedSocket: TracedSocket{ID: c.Sock.ID(), Settings: c.Settings, Known: c.Known}, probes: int(c.Sock.Probes)}
		if len(c.Owners) > 0 {
			s.Process = snap.Process(c.Owners[0].PID)
		}
		at := endpoints{unmap(c.Sock.Local()), unmap(c.Sock.Peer())}
		if was := old[at]; was != nil && was.ID == s.ID {
			s.missed = was.missed
		}
		t.sockets[at] = s
	}
	t.looked = time.Now()
	return nil
}

// socket finds the socket of one side, looking again when it is not known.
func (t *trace) socket(at endpoints) *tracedSocket {
	if s := t.sockets[at]; s != nil {
		return s
	}
	if t.sockets[endpoints{at.peer, at.local}] != nil || time.Since(t.looked) < lookEvery {
		return nil // the peer's probes, which only its own host can tell of
	}
	if err := t.look(); err != nil && t.ctx.Err() == nil { // else the trace is over
		t.fail(err)
	}
	return t.sockets[at]
}

func (t *trace) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *trace) emit(e *wire.Event) {
	if t.err != nil {
		return
	}
	s := t.socket(endpoints{e.Local, e.Peer})
	if s == nil && t.sockets[endpoints{e.Peer, e.Local}] == nil && !t.decided(e) {
		return
	}
	t.traced = Traced{Event: e}
	if s != nil {
		t.traced.Socket = &s.TracedSocket
		t.foresee(s, e)
	}
	t.fail(t.visit(&t.traced))
}

// decided reports whether the addresses alone select the connection of e,
// whose socket is not to be found.
func (t *trace) decided(e *wire.Event) bool {
	f := t.req.Filter
	return f == nil || f.Endpoints(e.Local, e.Peer) == conn.Yes || f.Endpoints(e.Peer, e.Local) == conn.Yes
}

// before gives how many of the probes that the kernel counted when we looked
// went out before the first one of the trace. Looking may have taken its time,
// and may have begun late: probes that followed the first do not count.
func (t *trace) before(s *tracedSocket, first time.Time) int {
	n := s.probes
	if t.looked.After(first) {
		n--
	}
	if late := t.looking.Sub(first); late > 0 && s.Known && s.Settings.Interval > 0 {
		n -= int(late / s.Settings.Interval)
	}
	return max(0, n)
}

// foresee counts the probes as the kernel does, and tells when it gives up.
func (t *trace) foresee(s *tracedSocket, e *wire.Event) {
	sent := e.Sent
	switch e.Kind {
	case wire.Probe:
		if sent = e.Time; e.N == 1 {
			s.missed, s.probes = t.before(s, e.Time), 0
		}
	case wire.Answer, wire.Unanswered, wire.GiveUp:
	default:
		return
	}
	e.N += s.missed
	if e.Kind == wire.Answer {
		s.probes, s.missed = 0, 0
	}
	if !s.Known || !s.Settings.KeepAlive {
		return
	}
	p := s.Settings.Policy
	t.traced.Of = p.Probes
	if e.Kind != wire.Probe && e.Kind != wire.Unanswered {
		return
	}
	f := forecast.Idle(forecast.Input{
		KeepAlive: true, Policy: p, HZ: t.hz, Heard: p.Idle + time.Duration(e.N-1)*p.Interval, TimerIn: p.Interval, Probes: e.N,
	})
	if f.GivesUp {
		t.traced.GivesUp, t.traced.Forecast = sent.Add(f.Earliest), f
	}
}
