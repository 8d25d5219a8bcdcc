package keepalive

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// sockopts are the system calls on one socket, the seam behind which the logic
// of all systems but Linux is tested on Linux.
type sockopts interface {
	get(o option) (int, error)
	set(o option, value int) error
	// vals is WSAIoctl(SIO_KEEPALIVE_VALS), which also switches keepalive on.
	vals(idle, interval time.Duration) error
	// fresh is the value of a TCP socket on which nothing was set.
	fresh(o option) (int, error)
	// errno is the error's number, 0 when it has none.
	errno(err error) int
}

// What Windows has on a socket without values of its own, which
// SIO_KEEPALIVE_VALS needs where only one of the two is asked for.
const (
	windowsIdle     = 2 * time.Hour
	windowsInterval = time.Second
)

// change is one option to set.
type change struct {
	part  Part
	way   way
	now   int
	value int
}

// plan is what a policy comes to on one socket.
type plan struct {
	changes  []change
	vals     bool // SIO_KEEPALIVE_VALS with the two below
	idle     time.Duration
	interval time.Duration
	undone   []*PartError
}

func (pl *plan) leave(part Part, format string, args ...any) {
	pl.undone = append(pl.undone, &PartError{part, fmt.Errorf(format, args...)})
}

// apply sets p and switches keepalive on. Unless bestEffort, nothing is
// changed when a part cannot be done at all.
func (y system) apply(s sockopts, p Policy, bestEffort bool) ([]*PartError, error) {
	if _, err := y.get(s, y.on); err != nil {
		return nil, err
	}
	pl, err := y.plan(s, p)
	if err != nil {
		return nil, err
	}
	if len(pl.undone) > 0 && !bestEffort {
		return nil, joinParts(pl.undone)
	}
	steps := append(inOrder(pl.changes), change{way: way{option: y.on}, value: 1})
	// The user timeout goes last, or first when it is switched off.
	slices.SortStableFunc(steps, func(a, b change) int { return timeoutRank(a) - timeoutRank(b) })
	for _, c := range steps {
		err := y.set(s, c.way.option, c.value)
		switch {
		case err == nil:
		case bestEffort && c.part != "":
			pl.undone = append(pl.undone, &PartError{c.part, err})
		case c.part != "":
			return nil, &PartError{c.part, err}
		default:
			return nil, err
		}
	}
	if pl.vals {
		if err := s.vals(pl.idle, pl.interval); err != nil {
			err = y.explain(s, fmt.Errorf("set SIO_KEEPALIVE_VALS to %v and %v: %w", pl.idle, pl.interval, err))
			if !bestEffort {
				return nil, err
			}
			if p.Idle > 0 {
				pl.undone = append(pl.undone, &PartError{PartIdle, err})
			}
			if p.Interval > 0 {
				pl.undone = append(pl.undone, &PartError{PartInterval, err})
			}
		}
	}
	return pl.undone, nil
}

// inOrder puts what makes the kernel more patient first. It gives up at the
// first expiry that finds idle + interval·probes over (tcp_timer_keep in the
// BSDs, xnu and illumos), so on the way that sum is never less than at both
// ends. Where the socket has no value yet (illumos: 0) interval comes before
// probes, which would else be taken as a share of the host's default.
func inOrder(changes []change) []change {
	slices.SortStableFunc(changes, func(a, b change) int {
		return lowers(a) - lowers(b)
	})
	return changes
}

func lowers(c change) int {
	if c.value < c.now {
		return 1
	}
	return 0
}

func timeoutRank(c change) int {
	switch {
	case c.part != PartUserTimeout:
		return 0
	case c.value <= 0:
		return -1
	}
	return 1
}

func (y system) plan(s sockopts, p Policy) (*plan, error) {
	pl := new(plan)
	noIdle, err := y.wish(s, pl, PartIdle, y.idle, p.Idle)
	if err != nil {
		return nil, err
	}
	noInterval, err := y.wish(s, pl, PartInterval, y.interval, p.Interval)
	if err != nil {
		return nil, err
	}
	noProbes, err := y.wish(s, pl, PartProbes, y.probes, time.Duration(p.Probes))
	if err != nil {
		return nil, err
	}
	switch {
	case y.vals && (noIdle || noInterval):
		pl.fallBackToVals(p)
		noIdle, noInterval = false, false
	case y.threshold != nil && noInterval && noProbes:
		if err := y.fallBackToThreshold(s, pl, p); err != nil {
			return nil, err
		}
		noInterval, noProbes = false, false
	}
	if noIdle {
		pl.leave(PartIdle, "%w on this system", errors.ErrUnsupported)
	}
	if noInterval {
		pl.leave(PartInterval, "%w on this system", errors.ErrUnsupported)
	}
	if noProbes {
		pl.leave(PartProbes, "%w on this system", errors.ErrUnsupported)
	}
	return pl, y.wishTimeout(s, pl, p.UserTimeout)
}

// wish plans the first of the ways that the kernel knows. missing: it knows
// none of them.
func (y system) wish(s sockopts, pl *plan, part Part, ways []way, want time.Duration) (missing bool, err error) {
	if want <= 0 {
		return false, nil
	}
	w, now, ok, err := y.find(s, ways)
	if err != nil || !ok {
		return !ok, err
	}
	pl.changes = append(pl.changes, change{part, w, now, wholes(want, w.unit)})
	return false, nil
}

func (y system) wishTimeout(s sockopts, pl *plan, want time.Duration) error {
	if want < 0 {
		return nil
	}
	w, now, ok, err := y.find(s, y.timeout)
	switch {
	case err != nil:
		return err
	case ok && want == 0 && y.freshTimeout:
		fresh, err := s.fresh(w.option)
		if err != nil {
			pl.leave(PartUserTimeout, "read %s of a fresh socket: %w", w.label, err)
		} else if fresh != now {
			pl.changes = append(pl.changes, change{PartUserTimeout, w, now, fresh})
		}
	case ok:
		pl.changes = append(pl.changes, change{PartUserTimeout, w, now, wholes(want, w.unit)})
	case want > 0:
		pl.leave(PartUserTimeout, "%w on this system", errors.ErrUnsupported)
	}
	return nil
}

// fallBackToVals plans the one call of Windows before 10 1709. It sets both
// times, and the one not asked for cannot be read.
func (pl *plan) fallBackToVals(p Policy) {
	pl.vals, pl.idle, pl.interval = true, roundUp(p.Idle, time.Second), roundUp(p.Interval, time.Second)
	const cannot = "SIO_KEEPALIVE_VALS cannot leave it as it is: %w (give it; best effort makes it %v)"
	if p.Idle == 0 {
		pl.idle = windowsIdle
		pl.leave(PartIdle, cannot, errors.ErrUnsupported, windowsIdle)
	}
	if p.Interval == 0 {
		pl.interval = windowsInterval
		pl.leave(PartInterval, cannot, errors.ErrUnsupported, windowsInterval)
	}
}

// fallBackToThreshold plans what Solaris before 11.4 has: the time from the
// first probe to the end, filled with probes at growing distances.
func (y system) fallBackToThreshold(s sockopts, pl *plan, p Policy) error {
	w, now, ok, err := y.find(s, []way{*y.threshold})
	if err != nil {
		return err
	}
	for _, part := range []Part{PartInterval, PartProbes} {
		if ok {
			pl.leave(part, "%w on this system (best effort sets interval·probes by %s)", errors.ErrUnsupported, w.label)
		} else {
			pl.leave(part, "%w on this system", errors.ErrUnsupported)
		}
	}
	if ok {
		total := roundUp(p.Interval, time.Second) * time.Duration(p.Probes)
		pl.changes = append(pl.changes, change{PartProbes, w, now, wholes(total, w.unit)})
	}
	return nil
}

// find is the first of the ways that the kernel knows, and its value.
func (y system) find(s sockopts, ways []way) (w way, value int, ok bool, err error) {
	for _, w := range ways {
		value, err := y.get(s, w.option)
		if err == nil {
			return w, value, true, nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return way{}, 0, false, err
		}
	}
	return way{}, 0, false, nil
}

// read gives what the socket holds. What the system does not tell is negative
// and named in the error, but for the user timeout: without the option it is
// off.
func (y system) read(s sockopts) (Settings, error) {
	on, err := y.get(s, y.on)
	if err != nil {
		return Settings{}, err
	}
	r := Settings{KeepAlive: on != 0}
	var untold []*PartError
	for _, f := range []struct {
		part Part
		ways []way
		to   *time.Duration
	}{
		{PartIdle, y.idle, &r.Idle},
		{PartInterval, y.interval, &r.Interval},
		{PartUserTimeout, y.timeout, &r.UserTimeout},
	} {
		w, value, ok, err := y.find(s, f.ways)
		switch {
		case err != nil:
			return Settings{}, &PartError{f.part, err}
		case ok:
			*f.to = max(0, time.Duration(value)*w.unit) // TCP_MAXRT has -1 for never
		case f.part != PartUserTimeout:
			*f.to = -1
			untold = append(untold, &PartError{f.part, fmt.Errorf("%w on this system", errors.ErrUnsupported)})
		}
	}
	_, probes, ok, err := y.find(s, y.probes)
	if err != nil {
		return Settings{}, &PartError{PartProbes, err}
	}
	if r.Probes = probes; !ok {
		r.Probes = -1
		untold = append(untold, &PartError{PartProbes, fmt.Errorf("%w on this system", errors.ErrUnsupported)})
	}
	return r, joinParts(untold)
}

// restore sets what differs from r and is not negative there. It goes on
// after a refusal, with the rest.
func (y system) restore(s sockopts, r Settings) error {
	now, err := y.read(s)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	var errs []error
	if now.KeepAlive && !r.KeepAlive { // what follows cannot end it any more
		errs = append(errs, y.set(s, y.on, 0))
	}
	var changes []change
	for _, f := range []struct {
		part      Part
		ways      []way
		now, want time.Duration
	}{
		{PartIdle, y.idle, now.Idle, r.Idle},
		{PartInterval, y.interval, now.Interval, r.Interval},
		{PartProbes, y.probes, time.Duration(now.Probes), time.Duration(r.Probes)},
	} {
		if f.want < 0 || f.now < 0 || f.want == f.now {
			continue
		}
		w, value, ok, err := y.find(s, f.ways)
		if err != nil || !ok {
			errs = append(errs, err)
			continue
		}
		changes = append(changes, change{f.part, w, value, wholes(f.want, w.unit)})
	}
	if r.UserTimeout >= 0 && r.UserTimeout != now.UserTimeout {
		var pl plan
		errs = append(errs, y.wishTimeout(s, &pl, r.UserTimeout), joinParts(pl.undone))
		changes = append(changes, pl.changes...)
	}
	changes = inOrder(changes)
	slices.SortStableFunc(changes, func(a, b change) int { return timeoutRank(a) - timeoutRank(b) })
	for _, c := range changes {
		if err := y.set(s, c.way.option, c.value); err != nil {
			errs = append(errs, &PartError{c.part, err})
		}
	}
	if r.KeepAlive && !now.KeepAlive {
		errs = append(errs, y.set(s, y.on, 1))
	}
	return errors.Join(errs...)
}

func (y system) get(s sockopts, o option) (int, error) {
	v, err := s.get(o)
	if err != nil {
		return 0, y.explain(s, fmt.Errorf("get %s: %w", o.label, err))
	}
	return v, nil
}

func (y system) set(s sockopts, o option, value int) error {
	if err := s.set(o, value); err != nil {
		return y.explain(s, fmt.Errorf("set %s to %d: %w", o.label, value, err))
	}
	return nil
}

// explain makes an unknown option match errors.ErrUnsupported.
func (y system) explain(s sockopts, err error) error {
	if !errors.Is(err, errors.ErrUnsupported) && slices.Contains(y.unknown, s.errno(err)) {
		return fmt.Errorf("%w (%w on this system, or not a TCP socket)", err, errors.ErrUnsupported)
	}
	return err
}

func wholes(d, unit time.Duration) int { return int(roundUp(d, unit) / unit) }
