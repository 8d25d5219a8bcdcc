package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/internal/beat"
)

// beatLine is what is known of an endpoint at a time.
type beatLine struct {
	at       time.Time
	since    time.Time // when it came to be in its state
	endpoint *beat.Endpoint
	state    heartbeat.State
	latency  time.Duration // 0 for none
	p99      time.Duration
	err      error
}

// beatView shows lines as they come, or a table of the latest. Safe for
// concurrent use.
type beatView struct {
	out   io.Writer
	table bool

	mu     sync.Mutex
	latest []beatLine // of the endpoints, in their order
	at     map[*beat.Endpoint]int
	screen *beatScreen // nil unless the table is drawn all along
	err    error       // the first line that could not be written
}

// beatView is one for a terminal that is watched, or for a file.
func (a *app) beatView(output string, watched bool, endpoints []*beat.Endpoint) *beatView {
	terminal := isTerminal(a.stdout) && os.Getenv("TERM") != "dumb"
	v := &beatView{
		out: a.stdout, table: output == "table" || output == "auto" && terminal,
		at: map[*beat.Endpoint]int{},
	}
	for i, e := range endpoints {
		v.latest = append(v.latest, beatLine{endpoint: e})
		v.at[e] = i
	}
	if f, ok := a.stdout.(*os.File); ok && v.table && terminal && watched {
		v.screen = newBeatScreen(f, a.colour())
		go v.screen.run(v.copy)
	}
	return v
}

func (v *beatView) show(line beatLine) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.table {
		v.json(line)
		return
	}
	last := &v.latest[v.at[line.endpoint]]
	line.since = last.since
	if last.at.IsZero() || last.state != line.state {
		line.since = line.at
	}
	if line.latency == 0 { // the last one known
		line.latency, line.p99 = last.latency, last.p99
	}
	*last = line
	if v.screen != nil {
		v.screen.changed()
	}
}

func (v *beatView) copy() []beatLine {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.latest)
}

// close leaves the table behind, and tells what could not be written.
func (v *beatView) close() error {
	if v.screen != nil {
		v.screen.close()
	}
	latest := v.copy()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.table {
		v.print(latest)
	}
	if v.err != nil {
		return fmt.Errorf("write output: %w", v.err)
	}
	return nil
}

func (v *beatView) wrote(err error) {
	if v.err == nil {
		v.err = err
	}
}

func (v *beatView) json(line beatLine) {
	out := struct {
		At        string   `json:"at"`
		URL       string   `json:"url"`
		State     string   `json:"state"`
		LatencyMS *float64 `json:"latency_ms"`
		Error     *string  `json:"error"`
	}{At: line.at.UTC().Format(time.RFC3339Nano), URL: line.endpoint.Name, State: line.state.String()}
	if line.err != nil {
		out.Error = new(line.endpoint.Text(line.err))
	} else if line.latency > 0 {
		out.LatencyMS = new(float64(line.latency.Microseconds()) / 1000)
	}
	v.wrote(newEncoder(v.out).Encode(out)) // a reader that has gone shows by SIGPIPE
}

// print writes the whole table.
func (v *beatView) print(lines []beatLine) {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tLATENCY\tP99\tURL\tERROR")
	for _, l := range lines {
		text := ""
		if l.err != nil {
			text = l.endpoint.Text(l.err)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.word(), milliseconds(l.latency), atMost(l.p99), l.endpoint.Name, text)
	}
	_ = w.Flush() // to memory
	for line := range strings.Lines(b.String()) {
		_, err := fmt.Fprintln(v.out, strings.TrimRight(line, " \n"))
		v.wrote(err)
	}
}

// word is the state as a table tells it.
func (l beatLine) word() string {
	if l.at.IsZero() {
		return "connecting"
	}
	return l.state.String()
}

func milliseconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// atMost is the upper end of a histogram's step.
func atMost(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	if ms := float64(d.Microseconds()) / 1000; ms < 100 {
		return fmt.Sprintf("≤ %.3g ms", ms)
	}
	return fmt.Sprintf("≤ %d ms", d.Milliseconds())
}
