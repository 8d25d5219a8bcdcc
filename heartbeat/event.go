package heartbeat

import "time"

// State is what the monitor holds of a target.
type State uint8

const (
	// NotReady targets are not pinged, or have not been yet.
	NotReady State = iota
	// Up means that the last ping was answered.
	Up
	// Suspect means that pings failed, but fewer than it takes.
	Suspect
	// Down means that as many pings failed as it takes, and none was answered
	// since.
	Down
)

// String is up, suspect, down or not_ready.
func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case Suspect:
		return "suspect"
	case Down:
		return "down"
	}
	return "not_ready"
}

// Kind says what an [Event] tells.
type Kind uint8

const (
	// Sent comes before each ping.
	Sent Kind = iota + 1
	// Answered has the Latency, negative when the target is [Untimed].
	Answered
	// Failed has Err and the Failures in a row, this one included.
	Failed
	// Heard stands for a ping that was not needed, or whose missing its
	// deadline does not count: traffic proved life, Latency ago.
	Heard
	// Unready is a target skipped since it was not ready.
	Unready
	// Busy is a target whose lock was not to be had within a deadline.
	Busy
	// Changed is a change of State, from Was.
	Changed
	// Reconnecting comes before each attempt and has its number in Attempt,
	// from 1.
	Reconnecting
	// Reconnected has Attempt and Latency. A ping follows.
	Reconnected
	// ReconnectFailed has Attempt, Err, and in Wait the time to the next one.
	ReconnectFailed
	// Removed is the last of a target. While the monitor stops it may be missing,
	// or come before the end of a call under way is told.
	Removed
	// Started has the period in Wait. It and the next two are of no target.
	Started
	// NotStarted says that no period was given.
	NotStarted
	// Stopped says that no more pings begin.
	Stopped
)

// Event is something that happened to a target, or to the monitor.
type Event struct {
	Kind     Kind
	Handle   *Handle // nil for an event of the monitor
	State    State   // after the event
	Was      State
	Failures int
	Attempt  int
	Latency  time.Duration
	Wait     time.Duration
	Err      error
}

// Observer is told what happens. The events of one target come one after the
// other, those of different targets at the same time from many goroutines.
// Pings wait for an observer: it must not block, nor end its goroutine, as
// [testing.T.FailNow] does. Its panics are swallowed.
type Observer interface {
	Observe(Event)
}

// Observers tells several, in their order, each whatever the others do. With
// none it is silent.
func Observers(list ...Observer) Observer { return observers(list) }

type observers []Observer

func (o observers) Observe(e Event) {
	for _, one := range o {
		observe(one, e)
	}
}

func observe(o Observer, e Event) {
	defer func() { _ = recover() }() // as Observer says
	o.Observe(e)
}
