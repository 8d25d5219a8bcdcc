package survey

import (
	"fmt"
	"net/netip"
	"time"
)

// Defaults and limits of Options.
const (
	DefaultMax         = 2 * time.Hour
	DefaultResolution  = 5 * time.Second
	DefaultConnections = 16

	LongestMax      = 7 * 24 * time.Hour
	MostConnections = 64

	// Shortest is the least idle time that a connection is asked after: no
	// keepalive idle time is shorter (tcp(7)).
	Shortest = time.Second
)

// Options say what is surveyed. Zero values mean the defaults.
type Options struct {
	Addr        netip.AddrPort
	Max         time.Duration // longest idle time tried (2 h)
	Resolution  time.Duration // how exactly the answer is wanted (5 s)
	Connections int           // open at a time (16)
	Resume      State         // what an earlier survey of Addr has found
	Dial        Dial          // nil means that of package net
	// Save, unless nil, is given all that is known after each connection; its
	// error ends the survey.
	Save    func(State) error
	Observe func(Event) // unless nil, told how far the survey is; by the goroutine that called Run, as Save
}

// OptionError says which option cannot be, and what would do.
type OptionError struct {
	Option  string // as the flag is named
	Value   string
	Allowed string
}

// Error names the option, its value and what is allowed.
func (e *OptionError) Error() string {
	return fmt.Sprintf("%s %s: allowed is %s", e.Option, e.Value, e.Allowed)
}

// complete puts the defaults in and returns an [*OptionError] for what cannot
// be.
func (o *Options) complete() error {
	if o.Max == 0 {
		o.Max = DefaultMax
	}
	if o.Resolution == 0 {
		o.Resolution = min(DefaultResolution, o.Max)
	}
	if o.Connections == 0 {
		o.Connections = DefaultConnections
	}
	switch {
	case o.Max <= Shortest || o.Max > LongestMax:
		return &OptionError{"max", o.Max.String(), fmt.Sprintf("above %v to %v", Shortest, LongestMax)}
	case o.Resolution < 100*time.Millisecond || o.Resolution > o.Max:
		return &OptionError{"resolution", o.Resolution.String(), fmt.Sprintf("100ms to %v", o.Max)}
	case o.Connections < 2 || o.Connections > MostConnections:
		return &OptionError{"connections", fmt.Sprint(o.Connections), fmt.Sprintf("2 to %d", MostConnections)}
	}
	if !o.Addr.IsValid() || o.Addr.Port() == 0 || o.Addr.Addr().IsUnspecified() || o.Addr.Addr().IsMulticast() {
		return &OptionError{"address", o.Addr.String(), "a host's address and a port"}
	}
	return nil
}

// Plan is what a survey will take.
type Plan struct {
	Passes int           // at most, unless connections end for other reasons
	Rung   time.Duration // between the connections of the first pass
	Asking time.Duration // until a connection counts as forgotten
}

// Plan tells what a survey takes, or gives an [*OptionError]. There are
// ⌈log(max/resolution) / log(connections)⌉ passes.
func (o Options) Plan() (Plan, error) {
	if err := o.complete(); err != nil {
		return Plan{}, err
	}
	p := Plan{Rung: max(o.Resolution, o.Max/time.Duration(o.Connections)), Asking: time.Duration(assumed.Needed()) * interval}
	for span := o.Max; span > o.Resolution; p.Passes++ {
		span = (span + time.Duration(o.Connections) - 1) / time.Duration(o.Connections)
	}
	p.Passes = max(1, p.Passes)
	return p, nil
}

// Bound is the longest that a survey takes whose answer is that idle time.
func (p Plan) Bound(answer time.Duration) time.Duration {
	return time.Duration(p.Passes) * (answer + p.Rung + p.Asking)
}

// Outcome is what became of an idle connection.
type Outcome string

// The outcomes.
const (
	Answered Outcome = "answered"     // a probe
	Silent   Outcome = "silent"       // probes went unanswered, while new connections got through
	Reset    Outcome = "reset"        // RST, from the server or a box on the path
	Closed   Outcome = "server_close" // FIN: the server's own doing
	// Disturbed: the server sent something by itself, such as its own keepalive
	// probes, so that the path did not get to see a connection that is idle.
	Disturbed Outcome = "server_keepalive"
)

// Observation is what became of one connection.
type Observation struct {
	// Idle is how long it had been idle when it was asked, or when it ended by
	// itself.
	Idle    time.Duration
	Outcome Outcome
	// Asked is false for what came out of the blue.
	Asked bool
	// Unanswered is how many probes had been when an answer came.
	Unanswered int
	RTT        time.Duration // of the handshake, smoothed (tcpi_rtt)
}

// lived reports whether the connection was known to work until Idle.
func (o Observation) lived() bool { return o.Outcome == Answered }

// known is what the observations amount to: a path that keeps a connection
// for alive, and not for gone.
type known struct {
	alive, gone time.Duration // gone is 0 when nothing was forgotten
	how         Outcome       // of gone
	// odd is the least idle time at which a connection ended though another
	// one lived longer, 0 when there was none.
	odd time.Duration
}

// weigh believes answers: silence may be chance, a reset or close may have
// another cause. What came out of the blue is exact, and what it ended had
// worked until then.
func weigh(list []Observation, resolution time.Duration) known {
	var k known
	for _, o := range list {
		if o.lived() {
			k.alive = max(k.alive, o.Idle)
		}
	}
	var end Observation
	for _, o := range list {
		switch {
		case o.lived():
		case o.Idle <= k.alive:
			if k.odd == 0 || o.Idle < k.odd {
				k.odd = o.Idle
			}
		case end.Outcome == "" || o.Idle < end.Idle:
			end = o
		}
	}
	if end.Outcome == "" {
		return k
	}
	k.gone, k.how = end.Idle, end.Outcome
	if !end.Asked {
		k.alive = max(k.alive, end.Idle-resolution)
	}
	return k
}

// ladder gives the idle times of the next pass, ascending, or none when the
// answer is known. Its last rung is the shortest time at which a connection is
// known to be gone: should that have been chance, it shows.
func (k known) ladder(o Options) []time.Duration {
	top := k.gone
	if top == 0 {
		top = o.Max
	}
	span := top - k.alive
	// Timers are late; a tenth of the resolution is not worth a pass.
	if span <= o.Resolution+o.Resolution/10 && k.gone > 0 || span <= 0 {
		return nil
	}
	n := min(time.Duration(o.Connections), (span+o.Resolution-1)/o.Resolution)
	rungs := make([]time.Duration, n)
	for i := range rungs {
		rungs[i] = k.alive + span*time.Duration(i+1)/n
	}
	return rungs
}
