package survey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"deadpeer/internal/verdict"
)

const (
	interval   = time.Second // between probes, the least there is
	mostProbes = 127         // MAX_TCP_KEEPCNT
	pace       = 100 * time.Millisecond
	connectIn  = 10 * time.Second
	// spare passes are for observations that later ones contradict.
	sparePasses = 2
)

// assumed is what is known of the loss before anything was asked.
var assumed verdict.Fail

// Dial connects to a server. The connection must have keepalive off.
type Dial func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error)

// Event tells how far a survey is.
type Event struct {
	Pass  int             // counted from 1; 0 is the connection that is asked first of all
	Rungs []time.Duration // of this pass
	// Observation is nil when a pass begins, else the newest.
	Observation *Observation
	Open        int // connections of this pass that are being waited for
	Alive, Gone time.Duration
}

// Run surveys the path to a server. With an error comes what is known so far.
// The error matches errors.ErrUnsupported where the system does not tell of
// answered probes.
func Run(ctx context.Context, o Options) (Result, error) {
	if err := o.complete(); err != nil {
		return Result{}, fmt.Errorf("survey: %w", err)
	}
	if o.Resume.Addr.IsValid() && o.Resume.Addr != o.Addr {
		return Result{}, fmt.Errorf("survey: the state is of %v, not of %v", o.Resume.Addr, o.Addr)
	}
	if o.Dial == nil {
		o.Dial = dial
	}
	s := &survey{o: o, state: State{o.Addr, o.Resume.Observations}}
	err := s.run(ctx)
	if ctx.Err() != nil {
		err = ctx.Err() // what it did to the others says nothing
	}
	if err != nil {
		err = fmt.Errorf("survey: %w", err)
	}
	return s.state.result(o), err
}

func dial(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false) // its subflows hide what becomes of probes
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// survey is a running Run.
type survey struct {
	o     Options
	mu    sync.Mutex // guards state, which connections read to know the loss
	state State
	pass  int
}

func (s *survey) known() known { return weigh(s.state.Observations, s.o.Resolution) }

func (s *survey) run(ctx context.Context) error {
	plan, err := s.o.Plan()
	if err != nil {
		return err
	}
	if s.known().alive == 0 { // first of all, one that no path has forgotten yet
		if err := s.climb(ctx, []time.Duration{Shortest}); err != nil {
			return err
		}
	}
	for s.pass = 1; ; s.pass++ {
		rungs := s.known().ladder(s.o)
		switch {
		case rungs == nil:
			return nil
		case s.pass > plan.Passes+sparePasses:
			return errors.New("connections end at times that contradict each other; the path does not go by idle time alone, or the server allows fewer of them")
		}
		if err := s.climb(ctx, rungs); err != nil {
			return err
		}
	}
}

// ended is what a connection has come to.
type ended struct {
	rung int
	obs  Observation
	err  error
}

// climb opens the connections of a pass and waits until it is known which of
// them are forgotten.
func (s *survey) climb(ctx context.Context, rungs []time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan ended, len(rungs))
	var connections sync.WaitGroup
	defer func() { cancel(); connections.Wait() }()
	s.tell(Event{Pass: s.pass, Rungs: rungs, Open: len(rungs)})
	for i, rung := range rungs {
		if i > 0 && !sleep(ctx, pace) {
			return ctx.Err()
		}
		tcp, err := s.connect(ctx)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		connections.Go(func() {
			obs, err := watch(ctx, tcp, rung, s.needed)
			results <- ended{i, obs, err}
		})
	}
	return s.collect(ctx, rungs, results)
}

func (s *survey) collect(ctx context.Context, rungs []time.Duration, results <-chan ended) error {
	gone := len(rungs) // the lowest rung that was forgotten
	pending := make([]bool, len(rungs))
	for i := range pending {
		pending[i] = true
	}
	sure := false // that new connections get through
	for open := len(rungs); ; {
		var e ended
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e = <-results:
		}
		open, pending[e.rung] = open-1, false
		switch {
		case e.err != nil:
			return e.err
		case s.pass == 0 && e.obs.Asked && !e.obs.lived():
			return fmt.Errorf("the server, or a box on the path, does not answer keepalive probes even after %v (%s): nothing can be found out this way", Shortest, e.obs.Outcome)
		}
		if e.obs.Outcome == Silent && !sure {
			if err := s.assure(ctx); err != nil {
				return err
			}
			sure = true
		}
		if err := s.learn(e.obs); err != nil {
			return err
		}
		s.tell(Event{Pass: s.pass, Rungs: rungs, Observation: &e.obs, Open: open})
		if e.obs.Asked && !e.obs.lived() {
			gone = min(gone, e.rung)
		}
		waiting := false
		for _, p := range pending[:gone] {
			waiting = waiting || p
		}
		if !waiting {
			return nil
		}
	}
}

// connect opens a connection, in good time.
func (s *survey) connect(ctx context.Context) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectIn)
	defer cancel()
	return s.o.Dial(ctx, s.o.Addr)
}

// assure makes sure that silence is not that of a path, or a host, that is
// down.
func (s *survey) assure(ctx context.Context) error {
	c, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("an idle connection is silent, but no new one gets through either: the path or the server is down; try again later: %w", err)
	}
	return c.Close()
}

// needed is how many probes must go unanswered, by what is known of the loss.
func (s *survey) needed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := assumed
	for _, o := range s.state.Observations {
		if o.lived() {
			fail.Controls++
			fail.Questions += o.Unanswered + 1
			fail.Unanswered += o.Unanswered
		}
	}
	return min(mostProbes, fail.Needed())
}

func (s *survey) learn(o Observation) error {
	s.mu.Lock()
	s.state.Observations = append(s.state.Observations, o)
	s.mu.Unlock()
	if s.o.Save == nil {
		return nil
	}
	return s.o.Save(s.state)
}

func (s *survey) tell(e Event) {
	if s.o.Observe == nil {
		return
	}
	k := s.known()
	e.Alive, e.Gone = k.alive, k.gone
	s.o.Observe(e)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
