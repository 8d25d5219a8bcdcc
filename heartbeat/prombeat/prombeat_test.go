package prombeat_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/prombeat"
)

func TestObserver(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	observer, err := prombeat.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := prombeat.New(registry); err == nil {
		t.Error("registered twice")
	}
	m := heartbeat.New(heartbeat.Options{Period: time.Hour, Observer: observer})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Stop(context.Background()) }()
	good := m.Add("good", heartbeat.PingFunc(func(context.Context) error { return nil }))
	bad := m.Add("bad", heartbeat.PingFunc(func(context.Context) error { return errors.New("no") }))
	good.PingNow()
	bad.PingNow()
	want := map[string]float64{
		"up good": 1, "state good up": 1, "state good down": 0, "pings_total good answered": 1, "latency_seconds good": 1,
		"up bad": 0, "state bad down": 1, "pings_total bad failed": 2,
	}
	await(t, func() bool {
		got := gather(t, registry)
		for name, value := range want {
			if v, ok := got[name]; !ok || v != value {
				return false
			}
		}
		return true
	}, func() any { return gather(t, registry) })
	good.Remove()
	for name := range gather(t, registry) {
		if strings.Contains(name, "good") {
			t.Errorf("%s is left of a target that was removed", name)
		}
	}
}

func await(t *testing.T, done func() bool, got func() any) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s: %v", got())
		}
	}
}

// gather gives the values by name and labels; of a histogram the count.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := strings.TrimPrefix(f.GetName(), "deadpeer_heartbeat_")
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			key += " " + labels["target"]
			for _, name := range []string{"state", "result"} {
				if labels[name] != "" {
					key += " " + labels[name]
				}
			}
			values[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}
