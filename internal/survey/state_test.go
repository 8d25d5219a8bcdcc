package survey

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "state")
	if s, err := ReadState(name); err != nil || s.Addr.IsValid() || s.Observations != nil {
		t.Fatalf("no file: %+v, %v", s, err)
	}
	s := State{netip.MustParseAddrPort("[fe80::1%eth0]:443"), []Observation{
		{Idle: time.Second, Outcome: Answered, Asked: true, Unanswered: 2, RTT: 310 * time.Microsecond},
		{Idle: time.Minute, Outcome: Closed},
	}}
	for range 2 { // also over itself
		if err := s.Write(name); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadState(name)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("read %+v, %v; wrote %+v", got, err, s)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	// To the millisecond, and neither way more than was seen.
	s.Observations = []Observation{{Idle: 1500*time.Microsecond + 1, Outcome: Answered}, {Idle: 1500*time.Microsecond + 1, Outcome: Silent}}
	if err := s.Write(name); err != nil {
		t.Fatal(err)
	}
	if got, err = ReadState(name); err != nil || got.Observations[0].Idle != time.Millisecond || got.Observations[1].Idle != 2*time.Millisecond {
		t.Errorf("rounded to %+v, %v", got.Observations, err)
	}
	if err := s.Write(filepath.Join(dir, "nowhere", "state")); err == nil || !strings.HasPrefix(err.Error(), "write state: ") {
		t.Error(err)
	}
}

func TestStateRefused(t *testing.T) {
	t.Parallel()
	observation := func(o string) string {
		return `{"schema":1,"address":"10.0.0.1:1","observations":[` + o + `]}`
	}
	for text, want := range map[string]string{
		"":                                    "EOF",
		"hi":                                  "invalid character",
		`{"schema":2,"address":"10.0.0.1:1"}`: "schema 2",
		`{"schema":1,"address":"db:1"}`:       "address",
		`{"schema":1,"address":"10.0.0.1:1","command":"rm"}`:              "unknown field",
		`{"schema":1,"address":"10.0.0.1:1"} {}`:                          "something follows",
		observation(`{"outcome":"gone"}`):                                 "unknown outcome",
		observation(`{"outcome":"silent","idle_ms":-1}`):                  "idle_ms -1",
		observation(`{"outcome":"silent","idle_ms":1000000000000000}`):    "idle_ms 1000000000000000",
		observation(`{"outcome":"silent","unanswered":128}`):              "unanswered 128",
		observation(`{"outcome":"silent","rtt_us":-5}`):                   "rtt_us -5",
		observation(strings.Repeat(`{"outcome":"silent"},`, 4096) + `{}`): "4097 observations",
		observation(strings.Repeat(" ", mostStateBytes)):                  "more than",
	} {
		if _, err := parseState([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

// Whatever a state says, it is refused or a survey goes on with it.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"schema":1,"address":"10.0.0.1:1","observations":[{"idle_ms":1000,"outcome":"answered","asked":true,"unanswered":1,"rtt_us":310}]}`))
	f.Add([]byte(`{"schema":1,"address":"[::1]:1","observations":[{"idle_ms":5000,"outcome":"server_close"},{"idle_ms":9000,"outcome":"answered"},{"idle_ms":9,"outcome":"silent"}]}`))
	f.Add([]byte(`{"schema":1,"address":"10.0.0.1:1","observations":null}`))
	f.Add([]byte(`[1]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseState(b)
		if err != nil {
			return
		}
		o := options(time.Hour, time.Second, 8)
		rungs := weigh(s.Observations, o.Resolution).ladder(o)
		for i, r := range rungs {
			if r <= 0 || i > 0 && r <= rungs[i-1] || len(rungs) > o.Connections {
				t.Errorf("rungs %v", rungs)
			}
		}
		r := s.result(o)
		if r.Alive < 0 || r.How != "" && r.How != Never && r.Gone <= r.Alive || !(r.Loss() >= 0 && r.Loss() < 1) {
			t.Errorf("result %+v", r)
		}
		if p, ok := r.Recommend(); ok {
			if err := p.ValidateFor("linux"); err != nil {
				t.Error(err)
			}
		}
	})
}
