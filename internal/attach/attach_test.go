package attach

import (
	"strings"
	"testing"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

func TestWait(t *testing.T) {
	p := keepalive.Policy{Idle: 10 * time.Second, Interval: 5 * time.Second, Probes: 3, UserTimeout: 25 * time.Second}
	fresh := conn.Sock{State: conn.Established, HasInfo: true, LastDataRecv: 100, LastAckRecv: 50}
	for name, tt := range map[string]struct {
		change        func(*conn.Sock)
		wait, timeout string
	}{
		"fresh":             {func(*conn.Sock) {}, "", ""},
		"one unanswered":    {func(s *conn.Sock) { s.Probes = 1 }, "", "a probe is unanswered"},
		"two unanswered":    {func(s *conn.Sock) { s.Probes = 2 }, "2 of its probes are unanswered already, of 3", "a probe is unanswered"},
		"in flight":         {func(s *conn.Sock) { s.Timer, s.Unacked = conn.TimerRetransmit, 3 }, "", ""},
		"retransmitting":    {func(s *conn.Sock) { s.Timer, s.Backoff = conn.TimerRetransmit, 1 }, "", "data is being retransmitted"},
		"retransmitted":     {func(s *conn.Sock) { s.Timer, s.Retransmits = conn.TimerRetransmit, 1 }, "", "data is being retransmitted"},
		"window shut":       {func(s *conn.Sock) { s.Timer = conn.TimerPersist }, "", "the peer's window is shut"},
		"window shut, long": {func(s *conn.Sock) { s.Timer, s.Backoff = conn.TimerPersist, 9 }, "", "the peer's window is shut"},
		"idle":              {func(s *conn.Sock) { s.LastAckRecv, s.LastDataRecv = 10_000, 20_000 }, "", "the peer was not heard of for 10s"},
		"closing":           {func(s *conn.Sock) { s.State = conn.LastAck }, "", "the connection is not open"},
		"untold":            {func(s *conn.Sock) { s.HasInfo = false }, "", "the connection is not open"},
	} {
		s := fresh
		tt.change(&s)
		if got := Wait(&s, p); !strings.HasPrefix(got, tt.wait) || (got == "") != (tt.wait == "") {
			t.Errorf("%s: %q, want %q", name, got, tt.wait)
		}
		if got := TimeoutWait(&s, p); got != tt.timeout {
			t.Errorf("%s: timeout %q, want %q", name, got, tt.timeout)
		}
		without := p
		without.UserTimeout = -1
		if got := TimeoutWait(&s, without); got != "" {
			t.Errorf("%s, no timeout wanted: %q", name, got)
		}
	}
}

func TestWanted(t *testing.T) {
	host := journal.Values{Idle: 7200, Interval: 75, Probes: 9}
	set := journal.Values{KeepAlive: true, Idle: 30, Interval: 5, Probes: 4}
	a := journal.Attached{Was: host, Found: host, Set: set, Applied: true}
	older := a
	older.Found = journal.Values{KeepAlive: true, Idle: 60, Interval: 10, Probes: 5}
	half := older
	half.Applied = false
	with := func(v journal.Values, change func(*journal.Values)) journal.Values { change(&v); return v }
	for name, tt := range map[string]struct {
		a         journal.Attached
		now, want journal.Values
		note      string
	}{
		"as set":               {a, set, host, ""},
		"put back already":     {a, host, host, ""},
		"idle changed":         {a, with(set, func(v *journal.Values) { v.Idle = 99 }), with(host, func(v *journal.Values) { v.Idle = 99 }), "idle 99s left: its program has changed it"},
		"timeout added":        {a, with(set, func(v *journal.Values) { v.UserTimeout = 9 }), with(host, func(v *journal.Values) { v.UserTimeout = 9 }), "user timeout 9ms left: its program has changed it"},
		"as the older had":     {older, older.Found, host, ""},
		"switched off":         {older, with(set, func(v *journal.Values) { v.KeepAlive = false }), host, ""},
		"killed in between":    {half, with(set, func(v *journal.Values) { v.KeepAlive, v.Probes = false, 5 }), host, ""},
		"killed, then its own": {half, with(set, func(v *journal.Values) { v.KeepAlive, v.Idle = false, 99 }), with(host, func(v *journal.Values) { v.Idle = 99 }), "idle 99s left: its program has changed it"},
		"changed, then mine":   {a, with(set, func(v *journal.Values) { v.Idle = 7200 }), host, ""},
	} {
		got, notes := wanted(tt.a, tt.now)
		if got != tt.want || strings.Join(notes, "; ") != tt.note {
			t.Errorf("%s: %+v %q, want %+v %q", name, got, notes, tt.want, tt.note)
		}
	}
}

// Values that sysctls allow and setsockopt does not are put back as near as
// can be, and that is said.
func TestPlanNear(t *testing.T) {
	host := journal.Values{Idle: 100_000, Interval: 75, Probes: 200}
	set := journal.Values{KeepAlive: true, Idle: 30, Interval: 75, Probes: 4}
	u := plan(0, journal.Attached{Was: host, Found: host, Set: set, Applied: true}, settingsOf(set))
	if u.want.Idle != longest || u.want.Probes != maxProbes || len(u.notes) != 2 || len(u.back) != 2 {
		t.Errorf("%+v", u)
	}
}

func TestAbout(t *testing.T) {
	a := About{At: time.Unix(1e9, 5).UTC(), Netns: "current", Rules: []Rule{
		{Match: "sport = :1", Policy: keepalive.Policy{Idle: 1500 * time.Millisecond, Interval: time.Second, Probes: 3, UserTimeout: -1}},
		{Policy: keepalive.Policy{Idle: 9 * time.Second, UserTimeout: time.Hour}, New: true, Enforce: true, Cgroup: "/x"},
	}}
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseAbout(b)
	a.Rules[0].Policy.Idle = 2 * time.Second
	if err != nil || !got.At.Equal(a.At) || len(got.Rules) != 2 || got.Rules[0] != a.Rules[0] || got.Rules[1] != a.Rules[1] {
		t.Errorf("%+v, %v; want %+v", got, err, a)
	}
	for _, bad := range []string{
		``, `{}`, `{"rules":[]}`, `{"rules":[{}]} x`, `{"rules":[{"zzz":1}]}`, `{"rules":[{"idle_s":-1}]}`, `{"rules":[{"probes":128}]}`, `{"rules":[{"user_timeout_ms":-1}]}`,
	} {
		if got, err := ParseAbout([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, got)
		}
	}
}

func FuzzParseAbout(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T15:04:05Z","netns":"all","rules":[{"match":"sport = :1","idle_s":30,"interval_s":5,"probes":4,"user_timeout_ms":null,"new":false,"enforce":false,"cgroup":""}]}`))
	f.Add([]byte(`{"rules":[{"user_timeout_ms":50000,"idle_s":30,"interval_s":5,"probes":4}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAbout(b)
		if err != nil {
			return
		}
		again, err := a.Encode()
		if err != nil && len(a.Rules) < 100 && a.At.Year() < 10000 {
			t.Fatal(err)
		}
		if back, err := ParseAbout(again); len(again) > 0 && (err != nil || len(back.Rules) != len(a.Rules)) {
			t.Errorf("%q, written %q: %v", b, again, err)
		}
	})
}
