//go:build !plan9

package keepalive

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fake is a socket of another system: the options it knows, and what was done
// to it.
type fake struct {
	values  map[option]int
	known   map[option]int // what a fresh socket has
	vals1   [2]time.Duration
	calls   []string
	unknown int
	refuse  map[string]error // by label, on set
	check   func()
}

func newFake(y system, values map[string]int) *fake {
	f := &fake{values: map[option]int{y.on: 0}, unknown: 0, refuse: map[string]error{}}
	if len(y.unknown) > 0 {
		f.unknown = y.unknown[0]
	}
	ways := slices.Concat(y.idle, y.interval, y.probes, y.timeout)
	if y.threshold != nil {
		ways = append(ways, *y.threshold)
	}
	for _, w := range ways {
		if v, ok := values[w.label]; ok {
			f.values[w.option] = v
		}
	}
	f.known = maps.Clone(f.values)
	return f
}

func (f *fake) get(o option) (int, error) {
	v, ok := f.values[o]
	if !ok {
		return 0, syscall.Errno(f.unknown)
	}
	return v, nil
}

func (f *fake) set(o option, value int) error {
	f.calls = append(f.calls, fmt.Sprintf("%s=%d", o.label, value))
	if err := f.refuse[o.label]; err != nil {
		return err
	}
	if _, ok := f.values[o]; !ok {
		return syscall.Errno(f.unknown)
	}
	f.values[o] = value
	if f.check != nil {
		f.check()
	}
	return nil
}

func (f *fake) vals(idle, interval time.Duration) error {
	f.calls = append(f.calls, fmt.Sprintf("SIO_KEEPALIVE_VALS=%v,%v", idle, interval))
	f.vals1 = [2]time.Duration{idle, interval}
	return f.refuse["SIO_KEEPALIVE_VALS"]
}

func (f *fake) fresh(o option) (int, error) {
	v, ok := f.known[o]
	if !ok {
		return 0, syscall.Errno(f.unknown)
	}
	return v, nil
}

func (f *fake) errno(err error) int {
	var e syscall.Errno
	errors.As(err, &e)
	return int(e)
}

func table(t *testing.T, goos, release string) system {
	t.Helper()
	y, ok := systemFor(goos, release)
	if !ok {
		t.Fatalf("no table for %s", goos)
	}
	return y
}

// What fresh sockets of the systems have.
func bsdDefaults() map[string]int {
	return map[string]int{"TCP_KEEPIDLE": 7200, "TCP_KEEPINTVL": 75, "TCP_KEEPCNT": 8}
}

func TestApply(t *testing.T) {
	const s = time.Second
	full := Policy{Idle: 60 * s, Interval: 10*s - 1, Probes: 6, UserTimeout: 90*s + 1}
	noTimeout := Policy{Idle: 60 * s, Interval: 10 * s, Probes: 6}
	windows := map[string]int{"TCP_KEEPIDLE": 7200, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 10, "TCP_MAXRTMS": 21000, "TCP_MAXRT": 21}
	for _, tt := range []struct {
		name, goos, release string
		has                 map[string]int
		p                   Policy
		calls               string
		undone              string // parts; "" when all was done
		bestCalls           string // where undone
	}{
		{name: "macOS", goos: "darwin", p: full,
			has:   map[string]int{"TCP_KEEPALIVE": 7200, "TCP_KEEPINTVL": 75, "TCP_KEEPCNT": 8, "TCP_RXT_CONNDROPTIME": 0},
			calls: "TCP_KEEPALIVE=60 TCP_KEEPINTVL=10 TCP_KEEPCNT=6 SO_KEEPALIVE=1 TCP_RXT_CONNDROPTIME=91"},
		{name: "macOS, user timeout off", goos: "darwin", p: Policy{},
			has:   map[string]int{"TCP_KEEPALIVE": 7200, "TCP_KEEPINTVL": 75, "TCP_KEEPCNT": 8, "TCP_RXT_CONNDROPTIME": 30},
			calls: "TCP_RXT_CONNDROPTIME=0 SO_KEEPALIVE=1"},
		{name: "FreeBSD 14", goos: "freebsd", p: full,
			has:   map[string]int{"TCP_KEEPIDLE": 7200, "TCP_KEEPINTVL": 75, "TCP_KEEPCNT": 8, "TCP_MAXUNACKTIME": 0},
			calls: "TCP_KEEPIDLE=60 TCP_KEEPINTVL=10 TCP_KEEPCNT=6 SO_KEEPALIVE=1 TCP_MAXUNACKTIME=91"},
		{name: "FreeBSD 13", goos: "freebsd", p: full, has: bsdDefaults(), undone: "user timeout",
			bestCalls: "TCP_KEEPIDLE=60 TCP_KEEPINTVL=10 TCP_KEEPCNT=6 SO_KEEPALIVE=1"},
		{name: "FreeBSD 13, no user timeout to switch off", goos: "freebsd", p: noTimeout, has: bsdDefaults(),
			calls: "TCP_KEEPIDLE=60 TCP_KEEPINTVL=10 TCP_KEEPCNT=6 SO_KEEPALIVE=1"},
		{name: "more patience first", goos: "netbsd", p: Policy{Idle: 60 * s, Interval: 100 * s, Probes: 9, UserTimeout: -1}, has: bsdDefaults(),
			calls: "TCP_KEEPINTVL=100 TCP_KEEPCNT=9 TCP_KEEPIDLE=60 SO_KEEPALIVE=1"},
		{name: "leave alone", goos: "netbsd", p: Policy{Probes: 4}, has: bsdDefaults(), calls: "TCP_KEEPCNT=4 SO_KEEPALIVE=1"},
		{name: "DragonFly", goos: "dragonfly", release: "6.4-RELEASE", p: noTimeout, has: bsdDefaults(),
			calls: "TCP_KEEPIDLE=60 TCP_KEEPINTVL=10 TCP_KEEPCNT=6 SO_KEEPALIVE=1"},
		{name: "DragonFly in milliseconds", goos: "dragonfly", release: "5.6.3-RELEASE", p: noTimeout,
			has:   map[string]int{"TCP_KEEPIDLE": 7200000, "TCP_KEEPINTVL": 75000, "TCP_KEEPCNT": 8},
			calls: "TCP_KEEPIDLE=60000 TCP_KEEPINTVL=10000 TCP_KEEPCNT=6 SO_KEEPALIVE=1"},
		{name: "OpenBSD", goos: "openbsd", p: full, undone: "idle, interval, probes, user timeout", bestCalls: "SO_KEEPALIVE=1"},
		{name: "OpenBSD, on", goos: "openbsd", p: Policy{}, calls: "SO_KEEPALIVE=1"},
		// The host's default, 8 minutes, is not split among six probes.
		{name: "illumos", goos: "illumos", p: noTimeout,
			has:   map[string]int{"TCP_KEEPIDLE": 7200, "TCP_KEEPINTVL": 0, "TCP_KEEPCNT": 0, "TCP_KEEPALIVE_THRESHOLD": 7200000, "TCP_KEEPALIVE_ABORT_THRESHOLD": 480000},
			calls: "TCP_KEEPINTVL=10 TCP_KEEPCNT=6 TCP_KEEPIDLE=60 SO_KEEPALIVE=1"},
		{name: "Solaris 11.3", goos: "solaris", p: noTimeout, undone: "interval, probes",
			has:       map[string]int{"TCP_KEEPALIVE_THRESHOLD": 7200000, "TCP_KEEPALIVE_ABORT_THRESHOLD": 480000},
			bestCalls: "TCP_KEEPALIVE_THRESHOLD=60000 TCP_KEEPALIVE_ABORT_THRESHOLD=60000 SO_KEEPALIVE=1"},
		{name: "Solaris 11.3, idle alone", goos: "solaris", p: Policy{Idle: 60 * s},
			has:   map[string]int{"TCP_KEEPALIVE_THRESHOLD": 7200000, "TCP_KEEPALIVE_ABORT_THRESHOLD": 480000},
			calls: "TCP_KEEPALIVE_THRESHOLD=60000 SO_KEEPALIVE=1"},
		{name: "Windows 11", goos: "windows", p: full, has: windows,
			calls: "TCP_KEEPINTVL=10 TCP_KEEPIDLE=60 TCP_KEEPCNT=6 SO_KEEPALIVE=1 TCP_MAXRTMS=90001"},
		{name: "Windows 10 1703", goos: "windows", p: full, has: map[string]int{"TCP_KEEPCNT": 10, "TCP_MAXRT": 21},
			calls: "TCP_KEEPCNT=6 SO_KEEPALIVE=1 TCP_MAXRT=91 SIO_KEEPALIVE_VALS=1m0s,10s"},
		{name: "Windows 8", goos: "windows", p: full, has: map[string]int{"TCP_MAXRT": 21}, undone: "probes",
			bestCalls: "SO_KEEPALIVE=1 TCP_MAXRT=91 SIO_KEEPALIVE_VALS=1m0s,10s"},
		{name: "Windows 8, times only", goos: "windows", p: Policy{Idle: 60 * s, Interval: 10 * s, UserTimeout: -1},
			calls: "SO_KEEPALIVE=1 SIO_KEEPALIVE_VALS=1m0s,10s"},
		{name: "Windows 8, idle only", goos: "windows", p: Policy{Idle: 60 * s}, undone: "interval",
			bestCalls: "SO_KEEPALIVE=1 SIO_KEEPALIVE_VALS=1m0s,1s"},
		{name: "Windows 8, interval only", goos: "windows", p: Policy{Interval: 5 * s}, undone: "idle",
			bestCalls: "SO_KEEPALIVE=1 SIO_KEEPALIVE_VALS=2h0m0s,5s"},
		{name: "Windows 8, on", goos: "windows", p: Policy{}, calls: "SO_KEEPALIVE=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			y := table(t, tt.goos, tt.release)
			f := newFake(y, tt.has)
			parts, err := y.apply(f, tt.p, false)
			if parts != nil {
				t.Errorf("undone without best effort: %v", parts)
			}
			if tt.undone == "" {
				if got := strings.Join(f.calls, " "); err != nil || got != tt.calls {
					t.Errorf("got %v, %q, want %q", err, got, tt.calls)
				}
			} else {
				if len(f.calls) > 0 || !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("got %v and the calls %q, want ErrUnsupported and none", err, f.calls)
				}
				for part := range strings.SplitSeq(tt.undone, ", ") {
					if !strings.Contains(fmt.Sprint(err), part+": ") {
						t.Errorf("%q does not name %s", err, part)
					}
				}
			}

			f = newFake(y, tt.has)
			parts, err = y.apply(f, tt.p, true)
			want := tt.calls
			if tt.undone != "" {
				want = tt.bestCalls
			}
			if got := strings.Join(f.calls, " "); err != nil || got != want {
				t.Errorf("best effort: got %v, %q, want %q", err, got, want)
			}
			var names []string
			for _, p := range parts {
				names = append(names, string(p.Part))
				if !errors.Is(p, errors.ErrUnsupported) {
					t.Errorf("best effort: %v does not match ErrUnsupported", p)
				}
			}
			if got := strings.Join(names, ", "); got != tt.undone {
				t.Errorf("best effort left %q undone, want %q", got, tt.undone)
			}
		})
	}
}

// Windows: zero gives what a fresh socket has, and is no call where it has it.
func TestUserTimeoutOffOnWindows(t *testing.T) {
	y := table(t, "windows", "")
	f := newFake(y, map[string]int{"TCP_MAXRTMS": 21000})
	for _, tt := range []struct {
		p    Policy
		want string
	}{
		{Policy{}, "SO_KEEPALIVE=1"},
		{Policy{UserTimeout: time.Minute}, "SO_KEEPALIVE=1 TCP_MAXRTMS=60000"},
		{Policy{}, "SO_KEEPALIVE=1 TCP_MAXRTMS=21000"},
	} {
		f.calls = nil
		if _, err := y.apply(f, tt.p, false); err != nil || strings.Join(f.calls, " ") != tt.want {
			t.Errorf("%+v: %v, %q, want %q", tt.p, err, f.calls, tt.want)
		}
	}
}

// On the way from any policy to any other, back, and back by restore, idle +
// interval·probes is never less than at both ends: at that sum the BSDs give
// up.
func TestNoImpatientStateOnTheWay(t *testing.T) {
	for _, goos := range []string{"darwin", "freebsd", "netbsd", "dragonfly", "illumos", "windows"} {
		y := table(t, goos, "")
		times := []time.Duration{10 * time.Second, 60 * time.Second, 7200 * time.Second}
		var policies []Policy
		for _, idle := range times {
			for _, interval := range times {
				for _, probes := range []int{1, 8, 100} {
					policies = append(policies, Policy{Idle: idle, Interval: interval, Probes: probes})
				}
			}
		}
		total := func(p Policy) time.Duration { return p.Idle + p.Interval*time.Duration(p.Probes) }
		for _, from := range policies {
			for _, to := range policies {
				f := newFake(y, map[string]int{y.idle[0].label: 0, y.interval[0].label: 0, y.probes[0].label: 0})
				if _, err := y.apply(f, from, false); err != nil {
					t.Fatal(err)
				}
				read := func() Settings {
					s, err := y.read(f)
					if err != nil {
						t.Fatal(err)
					}
					return s
				}
				before := read()
				if before != (Settings{KeepAlive: true, Policy: from}) {
					t.Fatalf("%s: set %+v, got %+v", goos, from, before)
				}
				f.check = func() {
					if now := read(); total(now.Policy) < min(total(from), total(to)) {
						t.Fatalf("%s: from %+v to %+v by way of %+v", goos, from, to, now)
					}
				}
				if _, err := y.apply(f, to, false); err != nil {
					t.Fatal(err)
				}
				if now := read(); now.Policy != to {
					t.Fatalf("%s: set %+v, got %+v", goos, to, now)
				}
				if err := y.restore(f, before); err != nil || read() != before {
					t.Fatalf("%s: restored %+v, %v, want %+v", goos, read(), err, before)
				}
			}
		}
	}
}

func TestReadWhatIsTold(t *testing.T) {
	for _, tt := range []struct {
		goos string
		has  map[string]int
		want Settings
		err  string
	}{
		{"netbsd", bsdDefaults(), Settings{Policy: Policy{Idle: 2 * time.Hour, Interval: 75 * time.Second, Probes: 8}}, ""},
		{"openbsd", nil, Settings{Policy: Policy{Idle: -1, Interval: -1, Probes: -1}}, "idle: "},
		{"windows", map[string]int{"TCP_KEEPCNT": 10, "TCP_MAXRT": -1}, Settings{Policy: Policy{Idle: -1, Interval: -1, Probes: 10}}, "interval: "},
		{"solaris", map[string]int{"TCP_KEEPALIVE_THRESHOLD": 7200000}, Settings{Policy: Policy{Idle: 2 * time.Hour, Interval: -1, Probes: -1}}, "probes: "},
	} {
		y := table(t, tt.goos, "")
		got, err := y.read(newFake(y, tt.has))
		if got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.goos, got, tt.want)
		}
		if tt.err == "" && err != nil || tt.err != "" && (!errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: %v, want ErrUnsupported that names %q", tt.goos, err, tt.err)
		}
	}
}

func TestRestoreSetsOnlyWhatDiffers(t *testing.T) {
	y := table(t, "freebsd", "")
	f := newFake(y, bsdDefaults())
	if err := y.restore(f, Settings{Policy: Policy{Idle: 2 * time.Hour, Interval: -1, Probes: 8}}); err != nil || len(f.calls) > 0 {
		t.Errorf("nothing differs: %v, %q", err, f.calls)
	}
	f.values[y.on] = 1
	if err := y.restore(f, Settings{Policy: Policy{Idle: time.Hour, Interval: 80 * time.Second, Probes: 8}}); err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(f.calls, " "), "SO_KEEPALIVE=0 TCP_KEEPINTVL=80 TCP_KEEPIDLE=3600"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// It goes on after a refusal.
	f.calls, f.refuse["TCP_KEEPIDLE"] = nil, syscall.EINVAL
	err := y.restore(f, Settings{KeepAlive: true, Policy: Policy{Idle: 1e9 * time.Second, Interval: time.Second, Probes: 3}})
	var part *PartError
	if !errors.As(err, &part) || part.Part != PartIdle || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("got %v, want the idle time refused", err)
	}
	if got, want := strings.Join(f.calls, " "), "TCP_KEEPIDLE=1000000000 TCP_KEEPINTVL=1 TCP_KEEPCNT=3 SO_KEEPALIVE=1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRefusals(t *testing.T) {
	y := table(t, "windows", "")
	has := map[string]int{"TCP_KEEPIDLE": 7200, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 10}
	p := Policy{Idle: time.Minute, Interval: time.Second, Probes: 5, UserTimeout: -1}

	f := newFake(y, has)
	f.refuse["TCP_KEEPCNT"] = syscall.EINVAL
	var part *PartError
	if _, err := y.apply(f, p, false); !errors.As(err, &part) || part.Part != PartProbes || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want probes refused, but not unsupported", err)
	}
	f = newFake(y, has)
	f.refuse["TCP_KEEPCNT"] = syscall.EINVAL
	undone, err := y.apply(f, p, true)
	if err != nil || len(undone) != 1 || undone[0].Part != PartProbes || f.calls[len(f.calls)-1] != "SO_KEEPALIVE=1" {
		t.Errorf("best effort: %v, %v, %q", undone, err, f.calls)
	}

	// Nothing works on what is no socket.
	f = newFake(y, has)
	delete(f.values, y.on)
	f.unknown = 10038 // WSAENOTSOCK
	for _, best := range []bool{false, true} {
		if _, err := y.apply(f, p, best); err == nil || errors.Is(err, errors.ErrUnsupported) || len(f.calls) > 0 {
			t.Errorf("no socket: %v, %q", err, f.calls)
		}
	}
	if _, err := y.read(f); err == nil {
		t.Error("read of no socket: no error")
	}
	if err := y.restore(f, Settings{}); err == nil {
		t.Error("restore of no socket: no error")
	}

	f = newFake(y, nil)
	f.refuse["SIO_KEEPALIVE_VALS"] = syscall.Errno(10045)
	p.Probes = 0
	if _, err := y.apply(f, p, false); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "SIO_KEEPALIVE_VALS") {
		t.Errorf("got %v, want SIO_KEEPALIVE_VALS named and ErrUnsupported", err)
	}
	if undone, err := y.apply(f, p, true); err != nil || len(undone) != 2 {
		t.Errorf("best effort: %v, %v, want idle and interval undone", undone, err)
	}
}

func TestBefore(t *testing.T) {
	for release, want := range map[string]bool{
		"5.6-RELEASE": true, "5.7": true, "4.9.1": true, "5.8-RELEASE": false, "5.10": false, "6.4-RELEASE": false,
		"": false, "5": false, "x.y": false, "5.": false, ".5": false,
	} {
		if got := before(release, 5, 8); got != want {
			t.Errorf("%q before 5.8: got %v", release, got)
		}
	}
}

func TestHeardFreeBSD(t *testing.T) {
	info := make([]byte, 256)
	info[0] = 4 // TCPS_ESTABLISHED
	copy(info[52:], []byte{0, 0, 0x10, 0})
	if d, connected, err := heardFreeBSD(info); err != nil || !connected || d != 0x100000*time.Microsecond && d != 0x1000*time.Microsecond {
		t.Errorf("got %v, %v, %v", d, connected, err)
	}
	info[0] = 1 // TCPS_LISTEN
	if _, connected, err := heardFreeBSD(info); err != nil || connected {
		t.Errorf("listening: got %v, %v", connected, err)
	}
	if _, _, err := heardFreeBSD(info[:55]); err == nil {
		t.Error("55 bytes are enough")
	}
}
