package beat

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"deadpeer/heartbeat"
)

// Metrics counts what a monitor does, and serves it in Prometheus's text
// format (prometheus.io/docs/instrumenting/exposition_formats). The metrics
// are those of package heartbeat/prombeat, which is for programs that have
// Prometheus's library anyway. Make it with NewMetrics.
type Metrics struct {
	mu    sync.Mutex
	names []string // in the order in which they came
	all   map[string]*counts
}

// counts are a target's.
type counts struct {
	state      heartbeat.State
	pings      [len(pingResults)]uint64
	reconnects [len(reconnectResults)]uint64
	latency    [len(latencyBounds) + 1]uint64 // answers by the bound they keep, the last by none
	seconds    float64                        // of all answers
}

var (
	states           = [...]heartbeat.State{heartbeat.NotReady, heartbeat.Up, heartbeat.Suspect, heartbeat.Down}
	pingResults      = [...]heartbeat.Kind{heartbeat.Answered, heartbeat.Failed, heartbeat.Heard, heartbeat.Unready, heartbeat.Busy}
	reconnectResults = [...]heartbeat.Kind{heartbeat.Reconnected, heartbeat.ReconnectFailed}
	latencyBounds    = [...]float64{0.000125, 0.0005, 0.002, 0.008, 0.032, 0.128, 0.512, 2.048, 8.192}
)

// NewMetrics has the targets of these names, before anything is known of them.
func NewMetrics(names []string) *Metrics {
	m := &Metrics{all: map[string]*counts{}}
	for _, name := range names {
		if m.all[name] == nil {
			m.names = append(m.names, name)
			m.all[name] = &counts{}
		}
	}
	return m
}

// Observe counts.
func (m *Metrics) Observe(e heartbeat.Event) {
	if e.Handle == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.all[e.Handle.Name()]
	if c == nil {
		return
	}
	if i := slices.Index(pingResults[:], e.Kind); i >= 0 {
		c.state = e.State
		c.pings[i]++
	}
	if i := slices.Index(reconnectResults[:], e.Kind); i >= 0 {
		c.reconnects[i]++
	}
	if e.Kind == heartbeat.Answered && e.Latency >= 0 {
		i := 0
		for i < len(latencyBounds) && e.Latency.Seconds() > latencyBounds[i] {
			i++
		}
		c.latency[i]++
		c.seconds += e.Latency.Seconds()
	}
}

// ServeHTTP answers with the metrics.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	m.write(&b)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // who asked has gone otherwise
}

func (m *Metrics) write(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	family := func(name, kind, help string, each func(name, target string, c *counts)) {
		name = "deadpeer_heartbeat_" + name
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, target := range m.names {
			each(name, `target="`+escape.Replace(target)+`"`, m.all[target])
		}
	}
	family("up", "gauge", "1 when the target is up or suspect, 0 when it is down or not ready.", func(name, target string, c *counts) {
		fmt.Fprintf(w, "%s{%s} %d\n", name, target, is(c.state == heartbeat.Up || c.state == heartbeat.Suspect))
	})
	family("state", "gauge", "1 for the state the target is in.", func(name, target string, c *counts) {
		for _, s := range states {
			fmt.Fprintf(w, "%s{%s,state=%q} %d\n", name, target, s, is(c.state == s))
		}
	})
	family("pings_total", "counter", "Pings by how they went.", func(name, target string, c *counts) {
		for i, result := range [...]string{"answered", "failed", "heard", "unready", "busy"} {
			fmt.Fprintf(w, "%s{%s,result=%q} %d\n", name, target, result, c.pings[i])
		}
	})
	family("reconnects_total", "counter", "Attempts to reconnect by how they went.", func(name, target string, c *counts) {
		for i, result := range [...]string{"done", "failed"} {
			fmt.Fprintf(w, "%s{%s,result=%q} %d\n", name, target, result, c.reconnects[i])
		}
	})
	family("latency_seconds", "histogram", "Time until a ping was answered.", func(name, target string, c *counts) {
		sum := uint64(0)
		for i, n := range c.latency {
			bound := "+Inf"
			if i < len(latencyBounds) {
				bound = fmt.Sprint(latencyBounds[i])
			}
			sum += n
			fmt.Fprintf(w, "%s_bucket{%s,le=%q} %d\n", name, target, bound, sum)
		}
		fmt.Fprintf(w, "%s_sum{%s} %g\n%s_count{%s} %d\n", name, target, c.seconds, name, target, sum)
	})
}

// escape is for the values of labels.
var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func is(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
