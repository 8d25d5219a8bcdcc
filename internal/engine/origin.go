package engine

import "deadpeer/keepalive"

// Origin says who chose the values of a connection's policy.
type Origin uint8

// The origins. Only BPF tells the program from the host; what we attached is in
// our own files.
const (
	OriginUnknown  Origin = iota
	OriginProgram         // the socket has values of its own, one at least
	OriginHost            // idle, interval and probes are the host's, and there is no user timeout
	OriginDeadpeer        // attached
)

// String gives the origin's name as the JSON contract spells it, "" when it is
// not known.
func (o Origin) String() string { return [...]string{"", "program", "host", "deadpeer"}[o] }

// setting is what is known of a policy.
type setting struct {
	keepalive.Settings
	origin Origin
}
