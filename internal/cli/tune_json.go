package cli

import (
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/engine"
)

type jsonTuneSetting struct {
	Name      string         `json:"name"`
	Part      string         `json:"part"`
	Unit      string         `json:"unit"`
	Live      *int64         `json:"live"`
	AtBoot    *int64         `json:"at_boot"`
	Default   int64          `json:"default"`
	Persisted *jsonPersisted `json:"persisted"`
	Second    *jsonPersisted `json:"persisted_by_other"`
	Differs   bool           `json:"readers_differ"`
	Decides   string         `json:"decides"`
}

type jsonPersisted struct {
	Value int64  `json:"value"`
	File  string `json:"file"`
	Line  *int   `json:"line"`
}

func (a *app) tuneJSON(state engine.Tuning) error {
	out := struct {
		Schema      int               `json:"schema"`
		Reader      string            `json:"boot_reader"`
		Other       *string           `json:"other_reader"`
		NoFile      *string           `json:"no_file"`
		Parameters  []jsonTuneSetting `json:"parameters"`
		DetectionS  float64           `json:"detection_s"`
		ChangedAt   *time.Time        `json:"changed_at"`
		Interrupted bool              `json:"interrupted"`
	}{Schema: 1, Reader: state.Reader, Interrupted: state.Interrupted}
	out.DetectionS = forecast.DetectionTime(policyOfHost(state, engine.TuneSetting.Now)).Seconds()
	if state.Other != "" {
		out.Other = &state.Other
	}
	if state.NoFile != "" {
		out.NoFile = &state.NoFile
	}
	if !state.Changed.IsZero() {
		out.ChangedAt = &state.Changed
	}
	for _, s := range state.Settings {
		j := jsonTuneSetting{
			Name: s.Name, Part: string(s.Part), Unit: string(s.Unit), Live: s.Live, Default: s.Default,
			AtBoot: atBoot(state, s), Persisted: persistedJSON(s.Persisted), Second: persistedJSON(s.Second), Differs: s.Differs, Decides: s.Decides,
		}
		out.Parameters = append(out.Parameters, j)
	}
	return newEncoder(a.stdout).Encode(out)
}

func persistedJSON(p *engine.TunePersisted) *jsonPersisted {
	if p == nil {
		return nil
	}
	j := &jsonPersisted{Value: p.Value, File: p.File}
	if p.Line > 0 {
		j.Line = &p.Line
	}
	return j
}
