package engine

import (
	"fmt"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/wire"
	"deadpeer/keepalive"
)

// TraceRequest says what is to be traced.
type TraceRequest struct {
	Netns     string       // as in Request, but not "all"
	Interface string       // "" or "any" for all
	Filter    *conn.Filter // nil traces every connection
	Save      *wire.Writer // unless nil gets the packets of the connections traced
	// Started, unless nil, is called once nothing that happens is missed.
	Started func()
}

// Traced is an event on the wire, and what the prober's socket tells of it.
type Traced struct {
	*wire.Event
	// Socket is the prober's, nil when it is not of this namespace, or gone.
	Socket *TracedSocket
	// Of is the number of probes that the policy allows, 0 when not known.
	Of int
	// GivesUp is when the kernel will end the connection if no answer comes;
	// the zero time when not known.
	GivesUp time.Time
	// Forecast is what the kernel will do until then, from when the probe was
	// sent that the event is about; without GivesUp there is none.
	Forecast forecast.Forecast
}

// TracedSocket is what a trace knows of a socket.
type TracedSocket struct {
	ID       conn.ID
	Process  *conn.Process // first of its owners, nil when not known
	Settings keepalive.Settings
	Known    bool // Settings were read
}

// TraceStats say what a trace could not see.
type TraceStats struct {
	wire.CaptureStats
	Forgotten uint64 // connections that made room for others
	Notes     []Note // as in a Snapshot
}

// Owner names the program that holds the socket, printable; "-" when not known.
func (s *TracedSocket) Owner() string {
	if s == nil || s.Process == nil {
		return "-"
	}
	return fmt.Sprintf("%s[%d]", conn.Printable(s.Process.Comm), s.Process.PID)
}
