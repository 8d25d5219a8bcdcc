package beat_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/prombeat"
	"deadpeer/internal/beat"
)

// Metrics are those of package prombeat, in a text that Prometheus's own
// parser reads.
func TestMetricsAreThoseOfPrombeat(t *testing.T) {
	t.Parallel()
	const odd = "a \"b\\\nc"
	registry := prometheus.NewRegistry()
	reference, err := prombeat.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	metrics := beat.NewMetrics([]string{"good", odd, "good", "untimed"})
	m := heartbeat.New(heartbeat.Options{
		Period: 20 * time.Millisecond, BackoffMin: time.Millisecond, BackoffMax: time.Millisecond,
		Observer: heartbeat.Observers(reference, metrics),
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.Add("good", heartbeat.PingFunc(func(context.Context) error { time.Sleep(time.Millisecond); return nil }))
	m.Add(odd, failing{})
	m.Add("untimed", untimed{})
	time.Sleep(300 * time.Millisecond)
	if err := m.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	want, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	recorder := httptest.NewRecorder()
	metrics.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(recorder.Body.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, recorder.Body.String())
	}
	got := map[string]float64{}
	for _, f := range parsed {
		series(f, got)
	}
	if len(want) != len(parsed) {
		t.Errorf("%d families, want %d", len(parsed), len(want))
	}
	wanted := map[string]float64{}
	for _, f := range want {
		series(f, wanted)
		if p := parsed[f.GetName()]; p.GetType() != f.GetType() || p.GetHelp() != f.GetHelp() {
			t.Errorf("%s: type %v, help %q", f.GetName(), p.GetType(), p.GetHelp())
		}
	}
	for name, value := range wanted {
		if v, ok := got[name]; !ok || v != value {
			t.Errorf("%s is %v, want %v", name, v, value)
		}
	}
	for name, value := range got {
		if _, ok := wanted[name]; !ok && value != 0 {
			t.Errorf("%s is %v, want none", name, value)
		}
	}
	if n := got["deadpeer_heartbeat_latency_seconds untimed"]; n != 0 {
		t.Errorf("%v s were counted of a target that tells no latency", n)
	}
	for _, name := range []string{"pings_total good answered", "pings_total " + odd + " failed", "reconnects_total " + odd + " failed", "up good", "pings_total untimed answered"} {
		if wanted["deadpeer_heartbeat_"+name] == 0 {
			t.Errorf("nothing was counted of %s", name)
		}
	}
}

type untimed struct{}

func (untimed) Ping(context.Context) error { time.Sleep(time.Millisecond); return nil }
func (untimed) Untimed() bool              { return true }

type failing struct{}

func (failing) Ping(context.Context) error      { return errors.New("no") }
func (failing) Reconnect(context.Context) error { return errors.New("no") }

// series adds a family's values by name and labels.
func series(f *dto.MetricFamily, into map[string]float64) {
	for _, m := range f.GetMetric() {
		name := f.GetName()
		for _, l := range m.GetLabel() { // sorted on one side only
			if l.GetName() == "target" {
				name += " " + l.GetValue()
			}
		}
		for _, l := range m.GetLabel() {
			if l.GetName() != "target" {
				name += " " + l.GetValue()
			}
		}
		h := m.GetHistogram()
		into[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + h.GetSampleSum()
		for _, b := range h.GetBucket() {
			if b.GetUpperBound() < 100 { // the last one goes without saying
				into[name+" "+time.Duration(b.GetUpperBound()*float64(time.Second)).String()] = float64(b.GetCumulativeCount())
			}
		}
	}
}
