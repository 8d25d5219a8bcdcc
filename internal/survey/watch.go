package survey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"deadpeer/keepalive"
)

const (
	lookEvery = 250 * time.Millisecond
	// A server may greet whoever connects, and look its name up before.
	greeting = 30 * time.Second
	// What moves on so short a silence are acknowledgements.
	settling = time.Second
	// The clocks differ by as much only when the machine slept.
	nap = 500 * time.Millisecond
)

var errAsleep = errors.New("this machine slept while connections were idle: their idle times are not what they seem")

// counts are what the system tells of a connection.
type counts struct {
	segments    uint64 // that came or went
	received    uint64 // bytes
	came        uint32 // segments that came
	established bool
	rtt         time.Duration
	// asleep is by how much the clock that goes on while the machine sleeps is
	// ahead of the one that does not.
	asleep time.Duration
}

// connection is an idle one.
type connection struct {
	tcp    *net.TCPConn
	end    chan error // of the reader, which owns it: nil for FIN
	opened time.Time
	since  time.Time // idle since
	last   counts
}

// watch leaves a connection alone until it has been idle for that long, asks
// it, and closes it.
func watch(ctx context.Context, tcp *net.TCPConn, idle time.Duration, needed func() int) (Observation, error) {
	c := &connection{tcp: tcp, end: make(chan error, 1), opened: time.Now()}
	go func() {
		_, err := io.Copy(io.Discard, tcp)
		c.end <- err
	}()
	o, err := c.watch(ctx, idle, needed)
	o.RTT = c.last.rtt
	if o.lived() {
		o.Idle = idle // and a little more, but that was not asked for
	}
	if err == nil && !o.lived() {
		// A FIN that nobody answers would be repeated for minutes.
		err = tcp.SetLinger(0)
	}
	return o, errors.Join(err, tcp.Close())
}

func (c *connection) watch(ctx context.Context, idle time.Duration, needed func() int) (o Observation, err error) {
	if c.last, err = look(c.tcp); err != nil {
		return o, err
	}
	if err := c.heard(); err != nil {
		return o, err
	}
	for {
		left := time.Until(c.since.Add(idle))
		if left <= 0 {
			return c.ask(ctx, needed())
		}
		select {
		case <-ctx.Done():
			return o, ctx.Err()
		case err := <-c.end:
			return c.ended(err, Observation{Idle: time.Since(c.since)})
		case <-time.After(min(left, lookEvery)):
		}
		before := time.Since(c.since)
		now, err := look(c.tcp)
		switch {
		case err != nil:
			return o, err
		case (now.asleep - c.last.asleep).Abs() > nap:
			return o, errAsleep
		case now.segments == c.last.segments || !now.established:
			continue // an end is told by the reader
		case before > settling+lookEvery && (now.received == c.last.received || time.Since(c.opened) > greeting):
			return Observation{Idle: before, Outcome: Disturbed}, nil
		}
		c.last = now
		if err := c.heard(); err != nil {
			return o, err
		}
	}
}

// heard starts the idle time anew, from when the peer was last heard.
func (c *connection) heard() error {
	ago, err := keepalive.Heard(c.tcp)
	if err != nil && !errors.Is(err, syscall.ENOTCONN) { // it ended: the reader tells how
		return err
	}
	c.since = time.Now().Add(-ago)
	return nil
}

// ask has the kernel send probes until one is answered, or as many as needed
// are not.
func (c *connection) ask(ctx context.Context, probes int) (Observation, error) {
	before, err := look(c.tcp)
	if err != nil {
		return Observation{}, err
	}
	start := time.Now()
	o := Observation{Idle: start.Sub(c.since), Asked: true}
	err = keepalive.Set(c.tcp, keepalive.Policy{Idle: Shortest, Interval: interval, Probes: probes})
	if err != nil {
		return o, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		select {
		case <-ctx.Done():
			return o, ctx.Err()
		case err := <-c.end:
			return c.ended(err, o)
		case <-time.After(pause):
		}
		now, err := look(c.tcp)
		if err != nil {
			return o, err
		}
		if now.established && now.came > before.came {
			took := max(0, time.Since(start)-now.rtt)
			o.Outcome, o.Unanswered = Answered, min(probes-1, int(took/interval))
			return o, nil
		}
	}
}

// ended tells what the reader's end means.
func (c *connection) ended(err error, o Observation) (Observation, error) {
	switch {
	case err == nil: // whoever asked meanwhile: a FIN is no answer to a probe
		return Observation{Idle: time.Since(c.since), Outcome: Closed}, nil
	case errors.Is(err, syscall.ECONNRESET):
		o.Outcome = Reset
	case o.Asked && errors.Is(err, syscall.ETIMEDOUT), o.Asked && errors.Is(err, syscall.EHOSTUNREACH):
		o.Outcome = Silent
	default:
		return o, fmt.Errorf("wait on idle connection: %w", err)
	}
	return o, nil
}
