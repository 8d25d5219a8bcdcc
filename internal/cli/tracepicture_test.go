package cli

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/wire"
	"deadpeer/keepalive"
)

//go:generate go test . -run TestTracePicture -update

var update = flag.Bool("update", false, "rewrite the expected pictures")

// scene makes the events of a trace, in seconds from some moment on.
type scene struct {
	p     *tracePicture
	local netip.AddrPort
	peer  netip.AddrPort
}

type nowhere struct{}

func (nowhere) event(*engine.Traced) error { return nil }
func (nowhere) end() error                 { return nil }

func moment(seconds float64) time.Time {
	return time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

func (s scene) tell(t *testing.T, e wire.Event) {
	t.Helper()
	e.Local, e.Peer = s.local, s.peer
	told := &engine.Traced{Event: &e, Socket: &engine.TracedSocket{
		Process: &conn.Process{PID: 4711, Comm: "fb\x1b[2Jserver"}, Known: true,
		Settings: keepalive.Settings{KeepAlive: true, Policy: keepalive.Policy{Idle: 15 * time.Second, Interval: 10 * time.Second, Probes: 5}},
	}}
	if e.Kind == wire.Probe {
		p := told.Socket.Settings.Policy
		told.Forecast = forecast.Idle(forecast.Input{KeepAlive: true, Policy: p, HZ: 250,
			Heard: p.Idle + time.Duration(e.N-1)*p.Interval, TimerIn: p.Interval, Probes: e.N})
	}
	if err := s.p.event(told); err != nil {
		t.Fatal(err)
	}
}

// probes tells of probes from a moment on, an interval of 10 s apart; the last
// may be answered.
func (s scene) probes(t *testing.T, from float64, n int, answered bool) {
	t.Helper()
	for i := range n {
		sent := moment(from + 10*float64(i))
		s.tell(t, wire.Event{Kind: wire.Probe, Time: sent, N: i + 1})
		if answered && i == n-1 {
			s.tell(t, wire.Event{Kind: wire.Answer, About: wire.Probe, Time: sent.Add(time.Millisecond), Sent: sent, N: i + 1, RTT: time.Millisecond})
		} else {
			s.tell(t, wire.Event{Kind: wire.Unanswered, About: wire.Probe, Time: sent.Add(time.Second), Sent: sent, N: i + 1})
		}
	}
}

func TestTracePicture(t *testing.T) {
	local := netip.MustParseAddrPort("10.0.0.1:3050")
	for name, act := range map[string]func(*testing.T, *tracePicture){
		"gone": func(t *testing.T, p *tracePicture) { // answers once, then is gone
			s := scene{p, local, netip.MustParseAddrPort("10.0.0.9:40112")}
			s.probes(t, 0, 1, true)
			s.probes(t, 15.2, 5, false)
			s.tell(t, wire.Event{Kind: wire.GiveUp, About: wire.Probe, Time: moment(65.9), N: 5})
		},
		"three": func(t *testing.T, p *tracePicture) {
			living := scene{p, local, netip.MustParseAddrPort("10.0.0.7:51000")}
			last := scene{p, local, netip.MustParseAddrPort("10.0.0.8:52000")}
			gone := scene{p, local, netip.MustParseAddrPort("[2001:db8:85a3::8a2e:370:7334]:40112")}
			for i := range 4 {
				living.probes(t, 15*float64(i), 1, true)
			}
			last.probes(t, 3, 5, true) // answers the last probe
			gone.probes(t, 6, 3, false)
			scene{p, gone.peer, gone.local}.tell(t, wire.Event{Kind: wire.Reset, Time: moment(26.1), N: 3, RTT: 100 * time.Millisecond})
		},
		"nothing": func(*testing.T, *tracePicture) {},
	} {
		p := newTracePicture(nowhere{})
		act(t, p)
		for kind, write := range map[string]func(io.Writer) error{"svg": p.draw().SVG, "html": p.page().HTML} {
			var b bytes.Buffer
			if err := write(&b); err != nil {
				t.Fatal(err)
			}
			// Times are those of the place where one looks.
			got := bytes.ReplaceAll(b.Bytes(), []byte(moment(0).Local().Format("2 January 2006 15:04:05")), []byte("DATE"))
			file := filepath.Join("testdata", "trace-"+name+"."+kind)
			if kind == "html" {
				if bytes.ContainsAny(got, "\x1b") || !bytes.Contains(got, []byte("<table>")) && name != "nothing" {
					t.Errorf("%s: %s", name, got)
				}
				continue
			}
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is another picture now; look at it after go generate", file)
			}
			for d := xml.NewDecoder(bytes.NewReader(got)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// What there is no room for is counted, and what is drawn stays bounded.
func TestTracePictureBounds(t *testing.T) {
	t.Parallel()
	p := newTracePicture(nowhere{})
	for i := range drawnConnections + 3 {
		s := scene{p, netip.MustParseAddrPort("10.0.0.1:3050"), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.9"), uint16(1000+i))}
		for j := range 2 * drawnSteps {
			s.tell(t, wire.Event{Kind: wire.Retransmission, Time: moment(float64(j)), N: j + 1})
		}
	}
	pic := p.draw()
	if len(pic.Lanes) != 2*drawnConnections || len(pic.Marks) != drawnSteps*drawnConnections {
		t.Errorf("%d lanes, %d marks", len(pic.Lanes), len(pic.Marks))
	}
	notes := strings.Join(pic.Caption, "\n")
	for _, want := range []string{"3 connections more not drawn", fmt.Sprintf("only the last %d steps", drawnSteps)} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes do not say %q:\n%s", want, notes)
		}
	}
}

// What was foreseen begins with a step that there is no room for any more.
func TestForecastOfDroppedStep(t *testing.T) {
	t.Parallel()
	p := newTracePicture(nowhere{})
	s := scene{p, netip.MustParseAddrPort("10.0.0.1:3050"), netip.MustParseAddrPort("10.0.0.9:40112")}
	for i := range drawnSteps + 20 {
		s.tell(t, wire.Event{Kind: wire.Probe, Time: moment(float64(10 * i)), N: i + 1})
	}
	pic := p.draw()
	for _, span := range pic.Spans {
		if span.From < 0 {
			t.Errorf("%+v begins outside of the picture", span)
		}
	}
	for _, m := range pic.Marks {
		if m.Earliest < 0 {
			t.Errorf("%+v is outside of the picture", m)
		}
	}
}
