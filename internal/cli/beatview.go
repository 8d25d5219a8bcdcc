package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"deadpeer/heartbeat"
	"deadpeer/internal/beat"
)

// beatLine is what is known of an endpoint at a time.
type beatLine struct {
	at       time.Time
	endpoint *beat.Endpoint
	state    heartbeat.State
	latency  time.Duration // 0 for none
	p99      time.Duration
	err      error
}

// beatView shows lines as they come, or a table of the latest. Safe for
// concurrent use.
type beatView struct {
	out    io.Writer
	table  bool
	live   bool // the table is drawn over itself
	colour bool

	mu     sync.Mutex
	latest []beatLine // of the endpoints, in their order
	drawn  int        // lines on the screen
}

func (a *app) beatView(output string, endpoints []*beat.Endpoint) *beatView {
	terminal := isTerminal(a.stdout)
	v := &beatView{
		out: a.stdout, live: terminal, colour: a.colour(),
		table: output == "table" || output == "auto" && terminal,
	}
	for _, e := range endpoints {
		v.latest = append(v.latest, beatLine{endpoint: e})
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
	for i := range v.latest {
		if v.latest[i].endpoint != line.endpoint {
			continue
		}
		if line.latency == 0 { // the last one known
			line.latency, line.p99 = v.latest[i].latency, v.latest[i].p99
		}
		v.latest[i] = line
	}
	if v.live {
		v.draw()
	}
}

// close draws the table where it was not drawn all along.
func (v *beatView) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.table && !v.live {
		v.draw()
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
	} else {
		out.LatencyMS = new(float64(line.latency.Microseconds()) / 1000)
	}
	enc := json.NewEncoder(v.out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(out) // a reader that has gone shows by SIGPIPE
}

// draw writes the table, over the one before on a terminal.
func (v *beatView) draw() {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tLATENCY\tP99\tURL\tERROR")
	for _, l := range v.latest {
		state, text := l.state.String(), ""
		if l.at.IsZero() {
			state = "connecting"
		}
		if l.err != nil {
			text = l.endpoint.Text(l.err)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", state, milliseconds(l.latency), atMost(l.p99), l.endpoint.Name, text)
	}
	_ = w.Flush() // to memory
	if v.live && v.drawn > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA", v.drawn)
	}
	v.drawn = 0
	width := v.width()
	for line := range strings.Lines(b.String()) {
		line = strings.TrimRight(line, " \n")
		if !v.live {
			fmt.Fprintln(v.out, line)
			continue
		}
		v.drawn++
		runes := []rune(line)
		line = string(runes[:min(len(runes), width)]) // one that wraps would be two
		if rest, ok := strings.CutPrefix(line, "down"); ok && v.colour {
			line = "\x1b[1;31mdown\x1b[0m" + rest
		}
		fmt.Fprintf(v.out, "%s\x1b[K\n", line)
	}
}

func (v *beatView) width() int {
	if f, ok := v.out.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 80
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
	return fmt.Sprintf("≤ %.3g ms", float64(d.Microseconds())/1000)
}
