package advise

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

// Advice is an entry made out for a policy.
type Advice struct {
	Example string   // the lines to put, each ended by a line feed
	Apply   []string // what makes them take effect, and when
}

// Render makes the entry out for a policy, whose idle, interval and probes
// must be given; durations are rounded up to the software's unit. A user
// timeout of 0 or less is left out: it is for those who ask for it, since it
// ends a living peer that keeps its window shut.
func (s Software) Render(p keepalive.Policy) (Advice, error) {
	if p.Idle <= 0 || p.Interval <= 0 || p.Probes <= 0 {
		return Advice{}, fmt.Errorf("render %s: the policy lacks idle, interval or probes", s.ID)
	}
	if err := p.ValidateFor("linux"); err != nil {
		return Advice{}, fmt.Errorf("render %s: %w", s.ID, err)
	}
	var a Advice
	var err error
	if a.Example, err = fill(s.Example, figures{p}); err != nil {
		return Advice{}, fmt.Errorf("render %s: %w", s.ID, err)
	}
	for _, line := range s.Apply {
		line, err := fill(line, figures{p})
		if err != nil {
			return Advice{}, fmt.Errorf("render %s: %w", s.ID, err)
		}
		a.Apply = append(a.Apply, line)
	}
	return a, nil
}

// fill puts figures in for {{.Name}}, and leaves out what stands between {{if
// .UserTimeoutMS}} and {{end}} when there is none; with {{- a line feed before
// it goes, too. text/template can do that, but it calls methods by name, for
// which the linker would keep every method of every package in the program.
func fill(text string, f figures) (string, error) {
	text = strings.ReplaceAll(text, "\n{{- ", "{{")
	for {
		before, rest, found := strings.Cut(text, "{{if .UserTimeoutMS}}")
		if !found {
			break
		}
		part, after, ended := strings.Cut(rest, "{{end}}")
		if !ended {
			return "", errors.New("{{if}} without {{end}}")
		}
		if f.UserTimeoutMS() == 0 {
			part = ""
		}
		text = before + part + after
	}
	named := f.named()
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{{")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, after, ended := strings.Cut(rest, "}}")
		figure, known := named[name]
		if !ended || !known {
			return "", fmt.Errorf("no figure {{%s}}", name)
		}
		fmt.Fprint(&b, figure)
		text = after
	}
}

// figures are what templates may use.
type figures struct{ policy keepalive.Policy }

func (f figures) named() map[string]any {
	return map[string]any{
		".Idle": f.Idle(), ".IdleMS": f.IdleMS(), ".IdleMinutes": f.IdleMinutes(), ".Interval": f.Interval(),
		".Probes": f.Probes(), ".ProbingMS": f.ProbingMS(), ".UserTimeoutMS": f.UserTimeoutMS(),
		".HalfDetection": f.HalfDetection(), ".ThirdDetection": f.ThirdDetection(), ".Heartbeat": f.Heartbeat(),
		".HostFlags": f.HostFlags(), ".Flags": f.Flags(),
	}
}

// Idle is in seconds.
func (f figures) Idle() int64 { return up(f.policy.Idle, time.Second) }

// IdleMS is in milliseconds.
func (f figures) IdleMS() int64 { return 1000 * f.Idle() }

// IdleMinutes is in minutes.
func (f figures) IdleMinutes() int64 { return up(f.policy.Idle, time.Minute) }

// Interval is in seconds.
func (f figures) Interval() int64 { return up(f.policy.Interval, time.Second) }

// Probes is their count.
func (f figures) Probes() int { return f.policy.Probes }

// ProbingMS is how long probing goes on, in milliseconds.
func (f figures) ProbingMS() int64 { return 1000 * f.Interval() * int64(f.policy.Probes) }

// UserTimeoutMS is in milliseconds, 0 when there is none to set.
func (f figures) UserTimeoutMS() int64 { return max(0, up(f.policy.UserTimeout, time.Millisecond)) }

// HalfDetection is half the detection time in seconds, rounded down: for
// Redis, which gives up after twice its one number.
func (f figures) HalfDetection() int64 { return max(1, f.detection()/2) }

// ThirdDetection is a third of it: for OpenSSH, which gives up after three
// unanswered questions.
func (f figures) ThirdDetection() int64 { return max(1, f.detection()/3) }

// Heartbeat is the detection time in seconds within what AMQP can say (a
// 16-bit number) and RabbitMQ takes for safe (5 s and more).
func (f figures) Heartbeat() int64 { return min(max(5, f.detection()), 65535) }

// HostFlags give the policy to deadpeer tune, which has no user timeout.
func (f figures) HostFlags() string {
	return fmt.Sprintf("--idle %ds --interval %ds --probes %d", f.Idle(), f.Interval(), f.policy.Probes)
}

// Flags give the policy to deadpeer attach.
func (f figures) Flags() string {
	flags := f.HostFlags()
	if ms := f.UserTimeoutMS(); ms > 0 {
		flags += fmt.Sprintf(" --user-timeout %dms", ms)
	}
	return flags
}

func (f figures) detection() int64 {
	return int64(forecast.DetectionTime(f.policy) / time.Second)
}

// up rounds up to whole units.
func up(d, unit time.Duration) int64 { return int64((d + unit - 1) / unit) }
