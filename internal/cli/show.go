package cli

import (
	"bufio"
	"io"
	"os"

	"golang.org/x/term"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

// show writes a snapshot in the format asked for.
func (a *app) show(snap *engine.Snapshot, acted bool) error {
	w := bufio.NewWriterSize(a.stdout, 64<<10)
	var sum engine.Summary
	var err error
	switch a.common.output {
	case "json":
		err = writeJSON(w, snap, &sum)
	case "jsonl":
		err = writeJSONLines(w, snap, &sum)
	default:
		t := table{wide: a.common.output == "wide", colour: a.colour(), asked: snap.Asked, acted: acted, owners: !a.common.noOwners}
		err = t.write(w, snap, &sum)
	}
	a.found, a.left = sum.ByVerdict, sum.Left
	if err != nil {
		return err
	}
	return w.Flush()
}

func (a *app) colour() bool {
	return !a.common.noColor && os.Getenv("NO_COLOR") == "" && isTerminal(a.stdout)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ansi is the colour a verdict is shown in.
func ansi(v conn.Verdict) string {
	switch v {
	case conn.Alive:
		return "\x1b[32m"
	case conn.Dead:
		return "\x1b[1;31m"
	case conn.Suspect, conn.Stuck, conn.Leaked:
		return "\x1b[33m"
	}
	return "\x1b[2m"
}
