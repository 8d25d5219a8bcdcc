package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
	"deadpeer/internal/wire"
)

// ErrForbidden is matched by errors of [Enter] that a privilege would cure;
// their text names it, or what else to enable.
var ErrForbidden = testnet.ErrForbidden

// Enter runs this program again with args in a user namespace when the
// process lacks the privileges, and gives its exit code with entered true.
// With them it does nothing. The error matches [ErrForbidden] where user
// namespaces are not allowed.
func Enter(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int, entered bool, err error) {
	return testnet.Reexec(ctx, args, stdin, stdout, stderr)
}

// Run acts out the story and removes everything it made, whatever happens.
// The error says what did not come out right; nil means all of it did. It
// takes about 8 s. Needs what [Enter] provides.
func Run(ctx context.Context, o Options) (Result, error) {
	return run(ctx, o, (*testnet.Link).Cut)
}

// run is Run with another way to cut the link, for tests.
func run(ctx context.Context, o Options, cut func(*testnet.Link) error) (Result, error) {
	if o.Silence <= 0 {
		o.Silence = DefaultSilence
	}
	p := &play{options: o, cutLink: cut, result: Result{Silence: o.Silence}}
	err := p.act(ctx)
	err = errors.Join(err, p.tracer.stop())
	if closeErr := p.stage.close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("take down the demo: %w", closeErr))
	}
	if err == nil {
		p.reach(Over)
	}
	return p.result, err
}

// play is one performance.
type play struct {
	options Options
	cutLink func(*testnet.Link) error
	stage   stage
	engine  *engine.Engine
	result  Result

	first, second *client // of the one who is locked out
	bystanders    []*client
	cutAt         time.Time
	tracer        *tracer // nil unless asked for
}

func (p *play) reach(s Step) {
	p.result.Reached = s
	if p.options.Observe != nil {
		p.options.Observe(s, &p.result)
	}
}

func (p *play) sinceCut() time.Duration { return time.Since(p.cutAt) }

func (p *play) act(ctx context.Context) error {
	if err := p.stage.build(ctx); err != nil {
		return fmt.Errorf("set up the demo: %w", err)
	}
	r := &p.result
	p.engine = engine.New(engine.Options{RuntimeDir: p.stage.dir})
	r.Server, r.ServerPID = p.stage.address, p.stage.locks.pid()
	p.reach(Staged)
	if p.options.Trace {
		var err error
		if p.tracer, err = p.trace(ctx); err != nil {
			return err
		}
	}
	for _, scene := range []func(context.Context) error{
		p.lock, p.cut, p.comeBack, p.foresee, p.check, p.release, p.regain,
	} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	return nil
}

// lock has everybody take a lock.
func (p *play) lock(ctx context.Context) (err error) {
	take := func(from *testnet.Host, name string) (*client, error) {
		c, err := p.stage.dial(ctx, from)
		if err != nil {
			return nil, err
		}
		return c, errors.Join(c.expect(ctx, "LOCK "+name, answerOK), c.expect(ctx, "UPDATE", answerOK))
	}
	if p.first, err = take(p.stage.laptop, contested); err != nil {
		return fmt.Errorf("take the lock: %w", err)
	}
	for i := range Bystanders {
		c, err := take(p.stage.office, "orders:"+strconv.Itoa(i+1))
		if err != nil {
			return fmt.Errorf("take a bystander's lock: %w", err)
		}
		p.bystanders = append(p.bystanders, c)
	}
	p.result.Phantom = p.first.address()
	if err := p.settle(ctx); err != nil {
		return fmt.Errorf("wait until all are idle: %w", err)
	}
	p.reach(Locked)
	return nil
}

// settle waits until no answer of the lock server is unacknowledged any more:
// clients delay their ACKs, and cut off before them the server would go on
// retransmitting, which is another story.
func (p *play) settle(ctx context.Context) error {
	req, err := p.request()
	if err != nil {
		return err
	}
	for start := time.Now(); ; {
		snap, err := p.engine.Scan(ctx, req)
		if err != nil {
			return err
		}
		busy := snap.Len() != 1+Bystanders
		for c := range snap.All() {
			busy = busy || !c.Sock.Idle()
		}
		if !busy {
			return nil
		}
		if time.Since(start) > answerWithin {
			return errors.New("the lock server's answers stay unacknowledged")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *play) cut(context.Context) error {
	if err := p.cutLink(p.stage.toLaptop); err != nil {
		return fmt.Errorf("cut the link: %w", err)
	}
	p.cutAt = time.Now()
	p.reach(Cut)
	return nil
}

// comeBack runs into the lock that the phantom holds.
func (p *play) comeBack(ctx context.Context) (err error) {
	if p.second, err = p.stage.dial(ctx, p.stage.desk); err != nil {
		return fmt.Errorf("come back: %w", err)
	}
	r := &p.result
	r.Back = p.second.address()
	if r.Answer, err = p.second.ask(ctx, "LOCK "+contested); err != nil {
		return fmt.Errorf("come back: %w", err)
	}
	if r.Answer != answerConflict {
		return fmt.Errorf("the lock server answered %q: the phantom does not hold the lock", r.Answer)
	}
	r.Conflict = p.sinceCut()
	p.reach(Conflict)
	return nil
}

// request selects what the commands of the story select.
func (p *play) request() (engine.Request, error) {
	filter, err := conn.ParseFilter([]string{"sport", "=", ":" + strconv.Itoa(port)}, conn.Resolver{})
	return engine.Request{
		Netns: p.stage.netns(), Filter: filter, Settings: true, Progress: p.options.Progress,
		Rules: verdict.Rules{Silence: p.options.Silence},
	}, err
}

// phantom finds the lost client's connection in a snapshot.
func (p *play) phantom(snap *engine.Snapshot) (engine.Connection, error) {
	for c := range snap.All() {
		if c.Sock.Peer() == p.result.Phantom {
			return *c, nil
		}
	}
	return engine.Connection{}, fmt.Errorf("the connection from %s is not listed", p.result.Phantom)
}

// foresee reads what the kernel will do about the phantom by itself.
func (p *play) foresee(ctx context.Context) error {
	req, err := p.request()
	if err != nil {
		return err
	}
	snap, err := p.engine.Scan(ctx, req)
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	c, err := p.phantom(snap)
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	f, ok := c.Forecast()
	r := &p.result
	r.State, r.Settings = c.Sock.State, c.Settings
	for _, o := range c.Owners {
		if process := snap.Process(o.PID); process != nil && int(o.PID) == r.ServerPID {
			r.Owner = conn.Printable(process.Comm)
		}
	}
	switch {
	case r.State != conn.Established:
		return fmt.Errorf("scan: the phantom is %s, not %s", r.State, conn.Established)
	case r.Owner == "":
		return errors.New("scan: the lock server's process was not found behind the phantom")
	case !c.Known || !ok:
		return errors.New("scan: the phantom's settings could not be read")
	case f.GivesUp:
		r.Forecast = verdict.Duration(f.Latest)
		return fmt.Errorf("scan: the kernel would give the phantom up in %s, not never", r.Forecast)
	}
	r.Forecast = "never"
	r.WithKeepAlive = forecast.DetectionTime(r.Settings.Policy)
	p.reach(Foreseen)
	return nil
}

// check asks everybody.
func (p *play) check(ctx context.Context) error {
	req, err := p.request()
	if err != nil {
		return err
	}
	r := &p.result
	r.Asked = p.sinceCut()
	p.reach(Asking)
	snap, err := p.engine.Check(ctx, req)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	r.Judged = p.sinceCut()
	var errs []error
	for c := range snap.All() {
		v := Verdict{
			Peer: c.Sock.Peer(), Verdict: c.Judgement.Verdict, Reason: c.Reason(),
			Unanswered: c.Evidence.Unanswered, Silence: c.Evidence.Silence,
		}
		r.Verdicts = append(r.Verdicts, v)
		want := conn.Alive
		if v.Peer == r.Phantom {
			want = conn.Dead
		}
		if v.Verdict != want {
			errs = append(errs, fmt.Errorf("check: %s is %s (%s), not %s", v.Peer, v.Verdict, v.Reason, want))
		}
	}
	slices.SortFunc(r.Verdicts, func(a, b Verdict) int {
		return cmp.Or(rank(b.Peer, r.Phantom)-rank(a.Peer, r.Phantom), a.Peer.Compare(b.Peer))
	})
	if n, want := len(r.Verdicts), Bystanders+2; n != want {
		errs = append(errs, fmt.Errorf("check: %d connections, not %d", n, want))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// No less than the phantom's questions must be on the wire.
	if r.Wire, err = p.sights(ctx, wire.Unanswered, r.Verdicts[0].Unanswered); err != nil {
		return err
	}
	p.reach(Judged)
	return nil
}

// rank is 1 for the first of the list.
func rank(peer, first netip.AddrPort) int {
	if peer == first {
		return 1
	}
	return 0
}

// release ends the phantom, and nothing else.
func (p *play) release(ctx context.Context) (err error) {
	req, err := p.request()
	if err != nil {
		return err
	}
	p.reach(Releasing)
	plan, err := p.engine.Plan(ctx, req)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	if len(plan.Held) > 0 {
		return fmt.Errorf("release: held: %s", plan.Held[0])
	}
	if plan.Len() != 1 {
		return fmt.Errorf("release: %d connections planned, not 1", plan.Len())
	}
	if err := plan.Act(ctx); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	r := &p.result
	r.Released = p.sinceCut()
	c, err := p.phantom(plan.Snapshot)
	switch {
	case err != nil:
		return fmt.Errorf("release: %w", err)
	case c.Outcome == nil:
		return errors.New("release: it was not the phantom that was planned")
	case !c.Outcome.Done:
		return fmt.Errorf("release: %s", c.Outcome.Error)
	}
	if r.Seen, err = p.stage.locks.line(ctx); err != nil {
		return err
	}
	if r.Wire, err = p.sights(ctx, wire.GiveUp, 1); err != nil {
		return err
	}
	p.reach(Released)
	return nil
}

// regain has the client take its lock, and looks after the others.
func (p *play) regain(ctx context.Context) error {
	r := &p.result
	for start := time.Now(); ; {
		answer, err := p.second.ask(ctx, "LOCK "+contested)
		if err != nil {
			return fmt.Errorf("take the lock again: %w", err)
		}
		if answer == answerOK {
			break
		}
		if time.Since(start) > answerWithin {
			return fmt.Errorf("take the lock again: the lock server still answers %q", answer)
		}
		time.Sleep(time.Millisecond)
	}
	r.Regained = p.sinceCut()
	if err := p.second.expect(ctx, "UPDATE", answerOK); err != nil {
		return fmt.Errorf("use the lock again: %w", err)
	}
	for _, c := range p.bystanders {
		if err := c.expect(ctx, "UPDATE", answerOK); err != nil {
			return fmt.Errorf("bystander %s: %w", c.address(), err)
		}
		r.Alive++
	}
	p.reach(Regained)
	return nil
}
