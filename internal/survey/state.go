package survey

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// State is what a survey has found so far; with it another one goes on.
type State struct {
	Addr         netip.AddrPort
	Observations []Observation
}

const (
	stateSchema      = 1
	mostObservations = 4096
	mostStateBytes   = 1 << 20
)

type stateFile struct {
	Schema       int                `json:"schema"`
	Address      string             `json:"address"`
	Observations []stateObservation `json:"observations"`
}

type stateObservation struct {
	IdleMS     int64   `json:"idle_ms"`
	Outcome    Outcome `json:"outcome"`
	Asked      bool    `json:"asked"`
	Unanswered int     `json:"unanswered"`
	RTTUS      int64   `json:"rtt_us"`
}

// ReadState reads a state that [State.Write] wrote. A file that is not there
// is an empty state.
func ReadState(name string) (State, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("read state: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, mostStateBytes+1))
	if err != nil {
		return State{}, fmt.Errorf("read state: %w", err)
	}
	s, err := parseState(b)
	if err != nil {
		return State{}, fmt.Errorf("read state %s: %w; remove the file to begin anew", name, err)
	}
	return s, nil
}

func parseState(b []byte) (s State, err error) {
	if len(b) > mostStateBytes {
		return s, fmt.Errorf("more than %d bytes", mostStateBytes)
	}
	var f stateFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return s, fmt.Errorf("no state of a survey: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("no state of a survey: something follows it")
	}
	if f.Schema != stateSchema {
		return s, fmt.Errorf("schema %d, this program reads %d", f.Schema, stateSchema)
	}
	if s.Addr, err = netip.ParseAddrPort(f.Address); err != nil {
		return s, fmt.Errorf("address: %w", err)
	}
	if len(f.Observations) > mostObservations {
		return s, fmt.Errorf("%d observations, allowed are %d", len(f.Observations), mostObservations)
	}
	for i, j := range f.Observations {
		switch j.Outcome {
		case Answered, Silent, Reset, Closed, Disturbed:
		default:
			return s, fmt.Errorf("observation %d: unknown outcome %.40q", i, j.Outcome)
		}
		for _, v := range []struct {
			field string
			value int64
			most  int64
		}{
			{"idle_ms", j.IdleMS, 2 * LongestMax.Milliseconds()},
			{"unanswered", int64(j.Unanswered), mostProbes},
			{"rtt_us", j.RTTUS, time.Hour.Microseconds()},
		} {
			if v.value < 0 || v.value > v.most {
				return s, fmt.Errorf("observation %d: %s %d, allowed is 0 to %d", i, v.field, v.value, v.most)
			}
		}
		s.Observations = append(s.Observations, Observation{
			Idle: time.Duration(j.IdleMS) * time.Millisecond, Outcome: j.Outcome, Asked: j.Asked,
			Unanswered: j.Unanswered, RTT: time.Duration(j.RTTUS) * time.Microsecond,
		})
	}
	return s, nil
}

// Write replaces the file by the state: whoever reads it, and whatever comes
// between, finds the old one or the new one whole.
func (s State) Write(name string) (err error) {
	f := stateFile{Schema: stateSchema, Address: s.Addr.String(), Observations: []stateObservation{}}
	for _, o := range s.Observations {
		idle := o.Idle.Milliseconds()
		if !o.lived() && o.Idle%time.Millisecond > 0 {
			idle++ // neither way more than was seen
		}
		f.Observations = append(f.Observations, stateObservation{
			IdleMS: idle, Outcome: o.Outcome, Asked: o.Asked, Unanswered: o.Unanswered, RTTUS: o.RTT.Microseconds(),
		})
	}
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*") // 0600
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	_, err = tmp.Write(append(b, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}
