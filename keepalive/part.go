package keepalive

import "strings"

// Part names one part of a policy.
type Part string

// The parts.
const (
	PartIdle        Part = "idle"
	PartInterval    Part = "interval"
	PartProbes      Part = "probes"
	PartUserTimeout Part = "user timeout"
)

// PartError says which part of a policy was not set, or not read, and why. It
// matches [errors.ErrUnsupported] when the system, or this kind of socket,
// cannot do it.
type PartError struct {
	Part Part
	Err  error
}

// Error names the part and what hindered it.
func (e *PartError) Error() string { return string(e.Part) + ": " + e.Err.Error() }

// Unwrap gives what hindered it.
func (e *PartError) Unwrap() error { return e.Err }

// partErrors are several of them on one line.
type partErrors []*PartError

func joinParts(parts []*PartError) error {
	if len(parts) == 0 {
		return nil
	}
	return partErrors(parts)
}

func (p partErrors) Error() string {
	lines := make([]string, len(p))
	for i, e := range p {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "; ")
}

func (p partErrors) Unwrap() []error {
	errs := make([]error, len(p))
	for i, e := range p {
		errs[i] = e
	}
	return errs
}
