package cli

import (
	"bufio"
	"encoding/json"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/keepalive"
)

// jsonAttached is what is said of an attachment beside its connections.
type jsonAttached struct {
	Attachment *string       `json:"attachment"`
	Matched    int           `json:"matched"`
	Changed    int           `json:"changed"`
	Ended      int           `json:"ended"`
	Failed     int           `json:"failed"`
	Passed     *int          `json:"passed,omitempty"` // detaching: left to newer attachments
	New        bool          `json:"new_connections"`
	InFlight   *jsonForecast `json:"in_flight"`
	TakenOver  []jsonTaken   `json:"taken_over,omitzero"` // attaching
	Rules      []jsonRule    `json:"rules,omitempty"`     // attaching
}

// jsonRule is a policy and what it is for.
type jsonRule struct {
	Filter  string     `json:"filter"`
	Policy  jsonValues `json:"policy"`
	New     bool       `json:"new_connections"`
	Enforce bool       `json:"enforce"`
}

func jsonRules(rules []engine.AttachedRule) []jsonRule {
	list := make([]jsonRule, len(rules))
	for n, r := range rules {
		list[n] = jsonRule{conn.Printable(r.Match), valuesOf(r.Policy), r.New, r.Enforce}
	}
	return list
}

// jsonValues are those of a policy, null for what it leaves alone.
type jsonValues struct {
	IdleS         *int64 `json:"idle_s"`
	IntervalS     *int64 `json:"interval_s"`
	Probes        *int   `json:"probes"`
	UserTimeoutMS *int64 `json:"user_timeout_ms"`
}

func valuesOf(p keepalive.Policy) jsonValues {
	positive := func(d, unit time.Duration) *int64 {
		if d <= 0 {
			return nil
		}
		return new(int64(d / unit))
	}
	v := jsonValues{IdleS: positive(p.Idle, time.Second), IntervalS: positive(p.Interval, time.Second), UserTimeoutMS: positive(p.UserTimeout, time.Millisecond)}
	if p.Probes > 0 {
		v.Probes = &p.Probes
	}
	return v
}

// jsonTaken counts the connections that an older attachment had.
type jsonTaken struct {
	Attachment  string `json:"attachment"`
	Connections int    `json:"connections"`
}

func newJSONAttached(a *engine.Attached) *jsonAttached {
	if a == nil {
		return nil
	}
	j := &jsonAttached{Matched: a.Matched, Changed: a.Changed, Ended: a.Ended, Failed: a.Failed, New: a.New, Rules: jsonRules(a.Rules)}
	if len(a.Rules) > 0 {
		j.TakenOver = []jsonTaken{}
	} else {
		j.Passed = &a.Passed
	}
	if a.ID != "" {
		j.Attachment = &a.ID
	}
	for _, t := range a.TakenOver {
		j.TakenOver = append(j.TakenOver, jsonTaken{t.ID, t.Connections})
	}
	if f := a.InFlight; f != nil {
		j.InFlight = forecastOf(*f)
	}
	return j
}

// attachedLine is the output with one attachment a line.
type attachedLine struct {
	encoder
	*jsonAttached
	connections []jsonConnection
	out         *json.Encoder
}

func newAttachedLine(w *bufio.Writer, a *engine.Attached) *attachedLine {
	return &attachedLine{
		encoder:      encoder{snap: a.Snapshot, procs: map[int32]jsonOwner{}},
		jsonAttached: newJSONAttached(a), connections: []jsonConnection{}, out: newEncoder(w),
	}
}

func (l *attachedLine) add(c *engine.Connection) error {
	l.connections = append(l.connections, l.connection(c))
	return nil
}

func (l *attachedLine) end(*engine.Summary) error {
	return l.out.Encode(struct {
		*jsonAttached
		Connections []jsonConnection `json:"connections"`
	}{l.jsonAttached, l.connections})
}
