package cli

import (
	"bufio"
	"encoding/json"

	"deadpeer/internal/engine"
)

// jsonAttached is what is said of an attachment beside its connections.
type jsonAttached struct {
	Attachment *string       `json:"attachment"`
	Matched    int           `json:"matched"`
	Changed    int           `json:"changed"`
	New        bool          `json:"new_connections"`
	InFlight   *jsonForecast `json:"in_flight"`
	TakenOver  []jsonTaken   `json:"taken_over"`
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
	j := &jsonAttached{Matched: a.Matched, Changed: a.Changed, New: a.New, TakenOver: []jsonTaken{}}
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
	l := &attachedLine{
		encoder:      encoder{snap: a.Snapshot, procs: map[int32]jsonOwner{}},
		jsonAttached: newJSONAttached(a), connections: []jsonConnection{}, out: json.NewEncoder(w),
	}
	l.out.SetEscapeHTML(false)
	return l
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
