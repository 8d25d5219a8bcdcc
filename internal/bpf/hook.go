package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// Ports is a range of ports, both ends included. The zero range is every port.
type Ports struct {
	Low  uint16 `json:"low"`
	High uint16 `json:"high"`
}

// Rule gives the connections that it fits a policy.
type Rule struct {
	Local Ports        // own port: of an accepted connection, the listener's
	Peer  Ports        // the peer's port
	From  netip.Prefix // the peer's address; the zero Prefix is any
	// Policy must have idle, interval and probes. UserTimeout is switched off
	// by zero and left alone when negative.
	Policy keepalive.Policy
	// Enforce keeps programs from weakening the policy of connections that have
	// it by this rule: their setsockopt(2) succeeds and does no more than the
	// policy allows.
	Enforce bool
}

// Overlaps reports whether a connection may fit both rules.
func (r Rule) Overlaps(o Rule) bool {
	meet := func(a, b Ports) bool {
		return a == (Ports{}) || b == (Ports{}) || a.Low <= b.High && b.Low <= a.High
	}
	return meet(r.Local, o.Local) && meet(r.Peer, o.Peer) &&
		(!r.From.IsValid() || !o.From.IsValid() || r.From.Overlaps(o.From))
}

// MaxRules is how many rules a hook takes.
const MaxRules = 64

// HookOptions say what a hook does, and for whom.
type HookOptions struct {
	// Dir is a folder on a bpffs; "" is hooks in [PinDir]. It is made, for its
	// owner alone.
	Dir string
	// ID names the hook: 1 to 32 letters, digits, or - and _ inside.
	ID string
	// Home is for the Label: where its maker notes what the hook is for.
	Home string
	// Cgroup is the folder of a cgroup v2. The hook has to do with sockets that
	// were made by its processes, and by those of the cgroups below it.
	Cgroup string
	// Rules are tried in their order; the first that fits gives the policy. A
	// connection that none fits is left alone.
	Rules []Rule
	// Follow notes what programs set themselves on connections, so that Changed
	// can tell. It costs a little at each setsockopt(2) in the cgroup.
	Follow bool
}

// Label says what a hook is, as it was made.
type Label struct {
	ID     string
	Home   string
	Cgroup string
	Rules  []Rule
	Made   time.Time
}

// Enforces reports whether any of the rules does.
func (l Label) Enforces() bool {
	return slices.ContainsFunc(l.Rules, func(r Rule) bool { return r.Enforce })
}

// Counters count what a hook has done, on all processors.
type Counters struct {
	Applied uint64 // connections that got a policy
	Failed  uint64 // connections of which the kernel refused to set something
	// Refused are connections left alone: with the user timeout they had the
	// policy would have been fatal (see keepalive.Policy.ValidateFor).
	Refused uint64
	// Limited are calls of programs that would have weakened a policy.
	Limited Limited
}

// Limited counts calls of setsockopt(2) by what they would have weakened.
type Limited struct {
	KeepAlive, Idle, Interval, Probes, UserTimeout uint64
}

// Sum is the number of calls.
func (l Limited) Sum() uint64 { return l.KeepAlive + l.Idle + l.Interval + l.Probes + l.UserTimeout }

// Changed is a connection that has its policy from a hook.
type Changed struct {
	ID conn.ID
	// Rule is the one that it fits, in Label.Rules.
	Rule int
	// Before is what it had, and, where the hook follows its programs, what
	// they have set since, though it may have been limited.
	Before Settings
	Given  keepalive.Policy
}

// check refuses options that cannot be.
func (o HookOptions) check() error {
	if !validID(o.ID) {
		return fmt.Errorf("id %q: 1 to 32 letters, digits, or - and _ inside are allowed", conn.Printable(o.ID))
	}
	if len(o.Rules) == 0 || len(o.Rules) > MaxRules {
		return fmt.Errorf("%d rules: 1 to %d are allowed", len(o.Rules), MaxRules)
	}
	for i, r := range o.Rules {
		if err := r.check(); err != nil {
			return fmt.Errorf("rule %d: %w", i+1, err)
		}
	}
	return nil
}

// Given is what a connection has of the policy, in the units that sockets have.
func (r Rule) Given() keepalive.Policy {
	p := r.Policy
	p.Idle, p.Interval = time.Duration(whole(p.Idle, time.Second))*time.Second, time.Duration(whole(p.Interval, time.Second))*time.Second
	if p.UserTimeout = max(p.UserTimeout, -1); p.UserTimeout > 0 {
		p.UserTimeout = time.Duration(whole(p.UserTimeout, time.Millisecond)) * time.Millisecond
	}
	return p
}

func (r Rule) check() error {
	for _, p := range []Ports{r.Local, r.Peer} {
		if p.Low > p.High {
			return fmt.Errorf("ports %d-%d: the first is greater than the last", p.Low, p.High)
		}
	}
	if r.From != (netip.Prefix{}) && !r.From.IsValid() {
		return errors.New("no valid prefix")
	}
	if r.From.Addr().Is4In6() {
		return fmt.Errorf("prefix %s: write it as IPv4", r.From)
	}
	if p := r.Policy; p.Idle <= 0 || p.Interval <= 0 || p.Probes <= 0 {
		return fmt.Errorf("policy %+v: idle, interval and probes are needed", p)
	}
	return r.Policy.ValidateFor("linux")
}

func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return false
		}
	}
	return len(id) > 0 && len(id) <= 32
}

// labelLen is the size of the map that holds a label (c/hook.c).
const labelLen = 32 << 10

// keptVersion is that of struct place in c/hook.c and of the label: raise it
// when one changes.
const keptVersion = 3

// storedLabel is a label as it is kept.
type storedLabel struct {
	Version int   `json:"version"`
	Label   Label `json:"label"`
}

func (l storedLabel) encode() ([]byte, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	if len(b) > labelLen {
		return nil, fmt.Errorf("id, cgroup and rules take %d bytes, %d are allowed", len(b), labelLen)
	}
	return append(b, make([]byte, labelLen-len(b))...), nil
}

func decodeLabel(b []byte) (l storedLabel, err error) {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return storedLabel{}, fmt.Errorf("read label: %w", err)
	}
	return l, nil
}

// whole rounds up; what is negative is 0.
func whole(d, unit time.Duration) int64 { return int64((max(d, 0) + unit - 1) / unit) }
