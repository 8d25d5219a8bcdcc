package cli

import (
	"bufio"
	"bytes"
	"testing"
)

// What a terminal is too narrow for goes on in the next line, head and cells
// alike, at the edge of a column.
func TestTableNarrow(t *testing.T) {
	t.Parallel()
	cells := [...]string{"dead", "10.0.0.1:5432", "90s", "6 questions unanswered"}
	for limit, want := range map[int]string{
		0:  "VERDICT  LOCAL          IN   REASON\ndead     10.0.0.1:5432  90s  6 questions unanswered\n",
		51: "VERDICT  LOCAL          IN   REASON\ndead     10.0.0.1:5432  90s  6 questions unanswered\n",
		50: "VERDICT  LOCAL          IN   REASON\ndead     10.0.0.1:5432  90s\n         6 questions unanswered\n",
		26: "VERDICT  LOCAL        \n         IN   REASON\ndead     10.0.0.1:5432\n         90s\n         6 questions unanswered\n",
	} {
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		tab := table{w: w, limit: limit, cols: []column{{head: "VERDICT"}, {head: "LOCAL"}, {head: "IN"}, {head: "REASON"}}}
		for i, c := range tab.cols {
			tab.widths[i] = max(len(c.head), len(cells[i]))
		}
		head := func(b []byte, i int) []byte { return append(b, tab.cols[i].head...) }
		line := func(b []byte, i int) []byte { return append(b, cells[i]...) }
		if err := tab.put(noVerdict, head); err != nil {
			t.Fatal(err)
		}
		if err := tab.put(noVerdict, line); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil || out.String() != want {
			t.Errorf("%d columns: %v\n%q, want\n%q", limit, err, out.String(), want)
		}
	}
}
