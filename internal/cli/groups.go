package cli

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
)

// groups is the output of scan --by: one line for what has the same program,
// unit or peer.
type groups struct {
	jsonObject
	by, format string
	sums       map[string]*engine.Summary
}

func newGroups(w *bufio.Writer, snap *engine.Snapshot, by, format string) *groups {
	return &groups{jsonObject: *newJSON(w, snap), by: by, format: format, sums: map[string]*engine.Summary{}}
}

// key is what the connection is grouped by, "" when that is not known.
func (g *groups) key(c *engine.Connection) string {
	if g.by == "peer" {
		return c.Sock.Peer().Addr().Unmap().String()
	}
	for _, o := range c.Owners {
		p := c.Process(o.PID)
		switch {
		case p == nil:
		case g.by == "unit" && p.Unit != "":
			return conn.Printable(p.Unit)
		case g.by == "program" && p.Comm != "":
			return conn.Printable(p.Comm)
		}
	}
	return ""
}

func (g *groups) add(c *engine.Connection) error {
	key := g.key(c)
	sum := g.sums[key]
	if sum == nil {
		sum = &engine.Summary{}
		g.sums[key] = sum
	}
	sum.Add(c)
	return nil
}

func (g *groups) end(total *engine.Summary) error {
	// The worst first.
	keys := slices.SortedFunc(maps.Keys(g.sums), func(a, b string) int {
		x, y := g.sums[a], g.sums[b]
		return cmp.Or(cmp.Compare(y.Blind, x.Blind), cmp.Compare(y.Worst, x.Worst), cmp.Compare(y.Connections, x.Connections), cmp.Compare(a, b))
	})
	switch g.format {
	case "json":
		return g.endObject(keys, total)
	case "jsonl":
		for _, key := range keys {
			b, err := g.line(key)
			if _, writeErr := g.w.Write(append(b, '\n')); err != nil || writeErr != nil {
				return errors.Join(err, writeErr)
			}
		}
		return nil
	}
	return g.endTable(keys, total)
}

func (g *groups) endTable(keys []string, total *engine.Summary) error {
	if len(keys) == 0 {
		_, err := fmt.Fprintln(g.w, "no connections")
		return err
	}
	w := tabwriter.NewWriter(g.w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tCONNECTIONS\tBLIND\tWORST DETECTION\tWITHOUT FORECAST\n", map[string]string{"program": "PROGRAM", "unit": "UNIT", "peer": "PEER"}[g.by])
	for _, key := range keys {
		sum := g.sums[key]
		worst := "-"
		switch {
		case sum.Blind > 0:
			worst = "never"
		case sum.Worst > 0:
			worst = verdict.Duration(sum.Worst)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\n", cmp.Or(key, "-"), sum.Connections, sum.Blind, worst, sum.Unforeseen)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(g.w, "\n%s, %d blind\n", count(total.Connections, "connection"), total.Blind)
	return err
}

// line is a group in JSON. What the kernel would never notice has no worst
// time.
func (g *groups) line(key string) ([]byte, error) {
	type group struct {
		By          string   `json:"by"`
		Name        *string  `json:"name"`
		Connections int      `json:"connections"`
		Blind       int      `json:"blind"`
		Unforeseen  int      `json:"without_forecast"`
		WorstS      *float64 `json:"worst_detection_s"`
	}
	sum := g.sums[key]
	j := group{By: g.by, Connections: sum.Connections, Blind: sum.Blind, Unforeseen: sum.Unforeseen}
	if key != "" {
		j.Name = &key
	}
	if sum.Worst > 0 && sum.Blind == 0 {
		j.WorstS = new(sum.Worst.Seconds())
	}
	return json.Marshal(j)
}

func (g *groups) endObject(keys []string, total *engine.Summary) error {
	lines := []json.RawMessage{}
	for _, key := range keys {
		b, err := g.line(key)
		if err != nil {
			return err
		}
		lines = append(lines, b)
	}
	return newEncoder(g.w).Encode(struct {
		jsonHead
		Groups  []json.RawMessage `json:"groups"`
		Summary jsonSummary       `json:"summary"`
	}{newJSONHead(g.takenAt), lines, newJSONSummary(total)})
}
