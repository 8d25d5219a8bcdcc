package attach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// About is what an attachment says of itself.
type About struct {
	At    time.Time
	Netns string // as the command was given it
	Rules []Rule // a connection has the first that matches
}

// Rule is a policy and what it is for.
type Rule struct {
	Match   string           // a filter in its canonical form, "" for everything
	Policy  keepalive.Policy // a negative user timeout leaves that as it is
	New     bool             // future connections, too
	Enforce bool             // against the programs' own later calls
	Cgroup  string           // where future connections are looked for, "" for the whole host
}

// maxRules bounds what one attachment can have.
const maxRules = 1000

type aboutJSON struct {
	At    time.Time  `json:"at"`
	Netns string     `json:"netns"`
	Rules []ruleJSON `json:"rules"`
}

type ruleJSON struct {
	Match         string `json:"match"`
	IdleS         int32  `json:"idle_s"`
	IntervalS     int32  `json:"interval_s"`
	Probes        int32  `json:"probes"`
	UserTimeoutMS *int32 `json:"user_timeout_ms"`
	New           bool   `json:"new"`
	Enforce       bool   `json:"enforce"`
	Cgroup        string `json:"cgroup"`
}

// Encode gives it as the file has it.
func (a About) Encode() ([]byte, error) {
	j := aboutJSON{At: a.At, Netns: a.Netns}
	for _, r := range a.Rules {
		rj := ruleJSON{
			Match: r.Match, IdleS: int32(roundUp(r.Policy.Idle, time.Second) / time.Second),
			IntervalS: int32(roundUp(r.Policy.Interval, time.Second) / time.Second), Probes: int32(r.Policy.Probes),
			New: r.New, Enforce: r.Enforce, Cgroup: r.Cgroup,
		}
		if r.Policy.UserTimeout >= 0 {
			rj.UserTimeoutMS = new(int32(roundUp(r.Policy.UserTimeout, time.Millisecond) / time.Millisecond))
		}
		j.Rules = append(j.Rules, rj)
	}
	b, err := json.Marshal(j)
	if err == nil && len(b) > journal.MaxAbout {
		err = fmt.Errorf("the rules take %d bytes, allowed are %d", len(b), journal.MaxAbout)
	}
	if err != nil {
		return nil, fmt.Errorf("encode attachment: %w", err)
	}
	return b, nil
}

// ParseAbout reads what Encode wrote, and refuses anything else.
func ParseAbout(b []byte) (About, error) {
	a, err := parseAbout(b)
	if err != nil {
		return About{}, fmt.Errorf("read what the attachment says of itself: %w", err)
	}
	return a, nil
}

func parseAbout(b []byte) (a About, err error) {
	var j aboutJSON
	if !utf8.Valid(b) {
		return a, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return a, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return a, errors.New("something follows its end")
	}
	if len(j.Rules) == 0 || len(j.Rules) > maxRules {
		return a, fmt.Errorf("it has %d rules, allowed are 1 to %d", len(j.Rules), maxRules)
	}
	a = About{At: j.At, Netns: j.Netns}
	for n, rj := range j.Rules {
		r := Rule{Match: rj.Match, New: rj.New, Enforce: rj.Enforce, Cgroup: rj.Cgroup, Policy: keepalive.Policy{
			Idle: time.Duration(rj.IdleS) * time.Second, Interval: time.Duration(rj.IntervalS) * time.Second,
			Probes: int(rj.Probes), UserTimeout: -1,
		}}
		if rj.UserTimeoutMS != nil {
			r.Policy.UserTimeout = time.Duration(*rj.UserTimeoutMS) * time.Millisecond
			if r.Policy.UserTimeout < 0 {
				return a, fmt.Errorf("rule %d: user timeout %v: allowed is 0 and more", n, r.Policy.UserTimeout)
			}
		}
		if err := r.Policy.ValidateFor("linux"); err != nil {
			return a, fmt.Errorf("rule %d: %w", n, err)
		}
		a.Rules = append(a.Rules, r)
	}
	return a, nil
}
