//go:build !linux

package engine

import (
	"context"

	"deadpeer/internal/host"
)

// Tuning reads the host's keepalive defaults and changes nothing.
func (e *Engine) Tuning(_ context.Context, r TuneRequest) (Tuning, error) {
	h, err := e.host(r)
	if err != nil {
		return Tuning{}, err
	}
	return h.Show()
}

// Tune sets the host's keepalive defaults; see host.Set. Connections there
// are already keep theirs.
func (e *Engine) Tune(ctx context.Context, r TuneRequest) (t Tuned, err error) {
	h, err := e.host(r)
	if err != nil {
		return t, err
	}
	if r.Existing {
		return t, unsupported("re-arm connections")
	}
	if r.DryRun {
		t.TunePlan, err = h.Plan(r.Change)
	} else {
		t.TunePlan, err = h.Set(ctx, r.Change)
	}
	t.Done = err == nil
	return t, err
}

// Untune puts back what Tune changed for the first time; see host.Restore.
func (e *Engine) Untune(ctx context.Context, r TuneRequest) (TuneOriginal, error) {
	h, err := e.host(r)
	if err != nil {
		return TuneOriginal{}, err
	}
	if r.DryRun {
		return h.PlanRestore()
	}
	return h.Restore(ctx)
}

func (e *Engine) host(r TuneRequest) (*host.Host, error) {
	if r.Netns != "" && r.Netns != "current" {
		return nil, unsupported("network namespaces")
	}
	return host.New(host.Options{Root: e.options.Root, StateDir: e.options.StateDir})
}
