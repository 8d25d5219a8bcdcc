package cli

import (
	"bufio"
	"io"
	"os"

	"golang.org/x/term"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

// output writes connections one after the other. What keeps it from writing
// comes out of the bufio.Writer below it.
type output interface {
	add(c *engine.Connection) error
	end(sum *engine.Summary) error
}

// output gives the one asked for; snap tells of the processes.
func (a *app) output(w *bufio.Writer, snap *engine.Snapshot, acted bool) output {
	if a.common.by != "" {
		return newGroups(w, snap, a.common.by, a.common.output)
	}
	switch a.common.output {
	case "json":
		j := newJSON(w, snap)
		j.attached = newJSONAttached(a.attached)
		return j
	case "jsonl":
		if a.attached != nil {
			return newAttachedLine(w, a.attached)
		}
		return newJSONLines(w, snap)
	}
	return newTable(w, table{
		wide: a.common.output == "wide", colour: a.colour(), limit: columnsOf(a.stdout), asked: snap.Asked, acted: acted, owners: !a.common.noOwners, attached: a.attached,
		sessions: len(a.common.databases) > 0, namespaces: a.common.netns == "all",
	})
}

// show writes all connections that each visits in the format asked for.
func (a *app) show(snap *engine.Snapshot, acted bool, each func(visit func(*engine.Connection) error) error) error {
	w := bufio.NewWriterSize(a.stdout, 64<<10)
	out := a.output(w, snap, acted)
	var sum engine.Summary
	err := each(func(c *engine.Connection) error {
		sum.Add(c)
		return out.add(c)
	})
	a.found, a.left = sum.ByVerdict, sum.Left
	if err != nil {
		return err
	}
	if err := out.end(&sum); err != nil {
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

// columnsOf is how wide a terminal is; 0 when w is none.
func columnsOf(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
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
