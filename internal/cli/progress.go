package cli

import (
	"fmt"
	"time"

	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
)

// progress shows how far asking is, on a terminal only, and gives the
// function that wipes it.
func (a *app) progress(req *engine.Request) func() {
	if !isTerminal(a.stderr) {
		return func() {}
	}
	var last time.Time
	shown := false
	req.Progress = func(p engine.Progress) {
		if p.Elapsed < 500*time.Millisecond || time.Since(last) < 200*time.Millisecond {
			return
		}
		last, shown = time.Now(), true
		fmt.Fprintf(a.stderr, "\r\x1b[Kasked %d: %d alive, %d silent, %d dead; %s of about %s",
			p.Asked, p.Alive, p.Silent, p.Dead, verdict.Duration(p.Elapsed), verdict.Duration(max(p.Elapsed, p.Expected)))
	}
	return func() {
		if shown {
			fmt.Fprint(a.stderr, "\r\x1b[K")
		}
	}
}
