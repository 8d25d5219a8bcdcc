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
	if a.Example, err = fill(s.Example, figures(p)); err != nil {
		return Advice{}, fmt.Errorf("render %s: %w", s.ID, err)
	}
	for _, line := range s.Apply {
		line, err := fill(line, figures(p))
		if err != nil {
			return Advice{}, fmt.Errorf("render %s: %w", s.ID, err)
		}
		a.Apply = append(a.Apply, line)
	}
	return a, nil
}

// fill puts values in for {{.Name}}, and leaves out what stands between {{if
// .UserTimeoutMS}} and {{end}} when there is none; with {{- a line feed before
// it goes, too. text/template can do that, but it calls methods by name, for
// which the linker would keep every method of every package in the program.
func fill(text string, values map[string]any) (string, error) {
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
		if values[".UserTimeoutMS"] == int64(0) {
			part = ""
		}
		text = before + part + after
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{{")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, after, ended := strings.Cut(rest, "}}")
		value, known := values[name]
		if !ended || !known {
			return "", fmt.Errorf("no figure {{%s}}", name)
		}
		fmt.Fprint(&b, value)
		text = after
	}
}

// figures are what templates may use. Times are in seconds unless the name says
// otherwise.
func figures(p keepalive.Policy) map[string]any {
	idle, interval, probes := up(p.Idle, time.Second), up(p.Interval, time.Second), int64(p.Probes)
	userTimeout := max(0, up(p.UserTimeout, time.Millisecond)) // 0 when there is none to set
	detection := int64(forecast.DetectionTime(p) / time.Second)
	hostFlags := fmt.Sprintf("--idle %ds --interval %ds --probes %d", idle, interval, probes)
	flags := hostFlags
	if userTimeout > 0 {
		flags += fmt.Sprintf(" --user-timeout %dms", userTimeout)
	}
	return map[string]any{
		".Idle": idle, ".IdleMS": 1000 * idle, ".IdleMinutes": up(p.Idle, time.Minute), ".Interval": interval, ".Probes": probes,
		".ProbingMS": 1000 * interval * probes, ".UserTimeoutMS": userTimeout,
		".HalfDetection":  max(1, detection/2),             // for Redis, which gives up after twice its one number
		".ThirdDetection": max(1, detection/3),             // for OpenSSH, which gives up after three unanswered questions
		".Heartbeat":      min(max(5, detection), 1<<16-1), // AMQP has 16 bits for it, and RabbitMQ takes 5 s and more for safe
		".HostFlags":      hostFlags,                       // for deadpeer tune, which has no user timeout
		".Flags":          flags,                           // for deadpeer attach
	}
}

// up rounds up to whole units.
func up(d, unit time.Duration) int64 { return int64((d + unit - 1) / unit) }
