package cli

import (
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/advise"
	"deadpeer/keepalive"
)

type jsonAdvice struct {
	Schema   int               `json:"schema"`
	Policy   jsonAdvicePolicy  `json:"policy"`
	Programs []jsonProgram     `json:"programs,omitempty"`
	Software *jsonAdviceEntry  `json:"software,omitempty"`
	List     []jsonAdviceEntry `json:"list,omitempty"`
	Log      *jsonAdviceLog    `json:"log,omitempty"`
}

type jsonAdvicePolicy struct {
	jsonForecastPolicy
	DetectionS float64 `json:"detection_s"`
}

type jsonProgram struct {
	Program     string            `json:"program"`
	Software    *string           `json:"software"`
	PID         *int32            `json:"pid"`
	Connections int               `json:"connections"`
	Blind       int               `json:"blind"`
	Slow        int               `json:"slow"`
	Unknown     int               `json:"unknown"`
	WorstS      *float64          `json:"worst_detection_s"`
	Mend        bool              `json:"mend"`
	File        *string           `json:"file"`
	Example     *string           `json:"example"`
	Apply       []string          `json:"apply"`
	Config      *jsonAdviceConfig `json:"config"`
}

type jsonAdviceConfig struct {
	Files    []string            `json:"files"`
	Settings []jsonAdviceSetting `json:"settings"`
	WithinS  *float64            `json:"detection_s"`
	Compared int                 `json:"compared"`
	Differ   int                 `json:"differ"`
	Harmful  []string            `json:"harmful"`
	Problems []string            `json:"problems"`
}

type jsonAdviceSetting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	File  string `json:"file"`
	Line  *int   `json:"line"`
}

type jsonAdviceEntry struct {
	ID      string         `json:"id"`
	Name    string         `json:"name"`
	Role    string         `json:"role"`
	Files   []advise.Place `json:"files"`
	Keys    []advise.Key   `json:"keys"`
	Example string         `json:"example,omitempty"`
	Apply   []string       `json:"apply,omitempty"`
	Caveats []string       `json:"caveats"`
	Source  []string       `json:"source"`
}

type jsonAdviceLog struct {
	File    string           `json:"file"`
	From    *string          `json:"from"`
	To      *string          `json:"to"`
	Entries int              `json:"entries"`
	PerDay  float64          `json:"errors_per_day"`
	Clients []jsonLogClient  `json:"clients"`
	Others  jsonLogClient    `json:"other_clients"`
	Policy  jsonAdvicePolicy `json:"policy"`
	Reasons []string         `json:"reasons"`
}

type jsonLogClient struct {
	Client   *string `json:"client"`
	Resets   int     `json:"resets"`
	Timeouts int     `json:"timeouts"`
	NetBEUI  int     `json:"netbeui"`
}

func (a *app) adviseJSON(v *advice) error {
	out := jsonAdvice{Schema: 1, Policy: newJSONAdvicePolicy(v.Policy)}
	if v.Software != nil {
		e := newJSONAdviceEntry(v.Software.Software)
		e.Example, e.Apply = v.Software.Advice.Example, v.Software.Advice.Apply
		out.Software = &e
	}
	if v.Log != nil {
		out.Log = newJSONAdviceLog(v.Log)
	}
	if v.Report != nil {
		out.Programs = make([]jsonProgram, 0, len(v.Report.Programs))
		for i := range v.Report.Programs {
			out.Programs = append(out.Programs, newJSONProgram(&v.Report.Programs[i]))
		}
	}
	return newEncoder(a.stdout).Encode(out)
}

func (a *app) adviseListJSON(list []advise.Software) error {
	out := struct {
		Schema   int               `json:"schema"`
		Software []jsonAdviceEntry `json:"software"`
	}{Schema: 1}
	for _, s := range list {
		out.Software = append(out.Software, newJSONAdviceEntry(s))
	}
	return newEncoder(a.stdout).Encode(out)
}

func newJSONAdvicePolicy(p keepalive.Policy) jsonAdvicePolicy {
	return jsonAdvicePolicy{
		newJSONForecastPolicy(p), forecast.DetectionTime(p).Seconds(),
	}
}

func newJSONAdviceEntry(s advise.Software) jsonAdviceEntry {
	return jsonAdviceEntry{
		ID: s.ID, Name: s.Name, Role: s.Role, Files: list(s.Files), Keys: list(s.Keys), Caveats: list(s.Caveats), Source: list(s.Source),
	}
}

func newJSONProgram(p *advise.Program) jsonProgram {
	j := jsonProgram{
		Program: p.Name, Connections: p.Connections, Blind: p.Blind, Slow: p.Slow, Unknown: p.Unknown, Mend: p.Mend, Apply: list(p.Advice.Apply),
	}
	if p.PID != 0 {
		j.PID = &p.PID
	}
	if p.Worst > 0 {
		j.WorstS = new(p.Worst.Seconds())
	}
	if p.Software != nil {
		j.Software, j.Example = &p.Software.ID, &p.Advice.Example
		if file := adviseFile(p); file != "" {
			j.File = &file
		}
	}
	if c := p.Config; c != nil {
		j.Config = &jsonAdviceConfig{
			Files: list(c.Files), Compared: p.Compared, Differ: p.Differ, Harmful: list(c.Harmful), Problems: list(c.Problems),
			Settings: []jsonAdviceSetting{},
		}
		if c.Within > 0 {
			j.Config.WithinS = new(c.Within.Seconds())
		}
		for _, s := range c.Settings {
			setting := jsonAdviceSetting{Key: s.Key, Value: s.Value, File: s.File}
			if s.Line > 0 {
				setting.Line = &s.Line
			}
			j.Config.Settings = append(j.Config.Settings, setting)
		}
	}
	return j
}

func newJSONAdviceLog(l *logged) *jsonAdviceLog {
	client := func(h advise.HostErrors) jsonLogClient {
		j := jsonLogClient{Resets: h.Resets, Timeouts: h.Timeouts, NetBEUI: h.NetBEUI}
		if h.Host != "" {
			j.Client = &h.Host
		}
		return j
	}
	j := &jsonAdviceLog{
		File: l.File, Entries: l.Summary.Entries, PerDay: l.Advice.PerDay, Clients: []jsonLogClient{}, Others: client(l.Summary.Others),
		Policy: newJSONAdvicePolicy(l.Advice.Policy), Reasons: l.Advice.Reasons,
	}
	if !l.Summary.From.IsZero() {
		// The log's clock is the server's, in a zone it does not tell.
		j.From, j.To = new(l.Summary.From.Format(time.DateTime)), new(l.Summary.To.Format(time.DateTime))
	}
	for _, h := range l.Summary.Hosts {
		j.Clients = append(j.Clients, client(h))
	}
	return j
}

// list is never null.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
