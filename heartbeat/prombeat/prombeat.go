// Package prombeat counts what a heartbeat.Monitor does, for Prometheus.
//
//	observer, err := prombeat.New(prometheus.DefaultRegisterer)
//	monitor := heartbeat.New(heartbeat.Options{Observer: heartbeat.Observers(observer, heartbeat.LogTo(slog.Default()))})
//
// Its metrics, each with the label target, the name a target was added with:
//
//	deadpeer_heartbeat_up                     1 when up or suspect, else 0
//	deadpeer_heartbeat_state                  1 for the state in the label state
//	deadpeer_heartbeat_pings_total            by result: answered, failed, heard, unready, busy
//	deadpeer_heartbeat_latency_seconds        histogram of the answers
//	deadpeer_heartbeat_reconnects_total       by result: done, failed
//
// A series per target is too many for a million of them: leave this out there.
// Those of a target end with its removal; targets of one name share theirs.
package prombeat

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"deadpeer/heartbeat"
)

// Observer is for the Observer of heartbeat.Options.
type Observer struct {
	up         *prometheus.GaugeVec
	state      *prometheus.GaugeVec
	pings      *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	reconnects *prometheus.CounterVec
}

var _ heartbeat.Observer = (*Observer)(nil)

// New registers the metrics.
func New(r prometheus.Registerer) (*Observer, error) {
	const space = "deadpeer_heartbeat"
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: space, Name: name, Help: help}
	}
	o := &Observer{
		up:         prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("up", "1 when the target is up or suspect, 0 when it is down or not ready.")), []string{"target"}),
		state:      prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("state", "1 for the state the target is in.")), []string{"target", "state"}),
		pings:      prometheus.NewCounterVec(prometheus.CounterOpts(opts("pings_total", "Pings by how they went.")), []string{"target", "result"}),
		reconnects: prometheus.NewCounterVec(prometheus.CounterOpts(opts("reconnects_total", "Attempts to reconnect by how they went.")), []string{"target", "result"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: space, Name: "latency_seconds", Help: "Time until a ping was answered.",
			Buckets: prometheus.ExponentialBuckets(0.000125, 4, 9), // to 8.2 s
		}, []string{"target"}),
	}
	for _, c := range []prometheus.Collector{o.up, o.state, o.pings, o.latency, o.reconnects} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register heartbeat metrics: %w", err)
		}
	}
	return o, nil
}

// Observe counts.
func (o *Observer) Observe(e heartbeat.Event) {
	if e.Handle == nil {
		return
	}
	name := e.Handle.Name()
	switch e.Kind {
	case heartbeat.Answered:
		o.pings.WithLabelValues(name, "answered").Inc()
		if e.Latency >= 0 {
			o.latency.WithLabelValues(name).Observe(e.Latency.Seconds())
		}
	case heartbeat.Failed:
		o.pings.WithLabelValues(name, "failed").Inc()
	case heartbeat.Heard:
		o.pings.WithLabelValues(name, "heard").Inc()
	case heartbeat.Unready:
		o.pings.WithLabelValues(name, "unready").Inc()
	case heartbeat.Busy:
		o.pings.WithLabelValues(name, "busy").Inc()
	case heartbeat.Reconnected:
		o.reconnects.WithLabelValues(name, "done").Inc()
	case heartbeat.ReconnectFailed:
		o.reconnects.WithLabelValues(name, "failed").Inc()
	case heartbeat.Removed:
		labels := prometheus.Labels{"target": name}
		for _, c := range []interface {
			DeletePartialMatch(labels prometheus.Labels) int
		}{o.up, o.state, o.pings, o.latency, o.reconnects} {
			c.DeletePartialMatch(labels)
		}
		return
	case heartbeat.Changed:
	default:
		return
	}
	for _, s := range []heartbeat.State{heartbeat.NotReady, heartbeat.Up, heartbeat.Suspect, heartbeat.Down} {
		o.state.WithLabelValues(name, s.String()).Set(is(e.State == s))
	}
	o.up.WithLabelValues(name).Set(is(e.State == heartbeat.Up || e.State == heartbeat.Suspect))
}

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
