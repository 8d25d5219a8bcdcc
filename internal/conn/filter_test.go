package conn

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

func testResolver() Resolver {
	return Resolver{
		Port: func(name string) (uint16, bool) {
			n, ok := map[string]uint16{"https": 443, "postgresql": 5432}[name]
			return n, ok
		},
		Interface: func(name string) (uint32, bool) { return 3, name == "eth0" },
		Cgroup:    func(path string) (uint64, bool) { return 77, path == "/system.slice" },
	}
}

func parse(t *testing.T, text string) *Filter {
	t.Helper()
	f, err := ParseFilter(strings.Split(text, " "), testResolver())
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return f
}

func TestParseFilterCanonical(t *testing.T) {
	tests := []struct{ in, want string }{
		// States, as ss reads them.
		{"state established", "state established"},
		{"( state ESTABLISHED )", "state established"},
		{"state established state syn-sent", "state established state syn-sent"},
		{"state all exclude listening exclude closed exclude bound-inactive", "state connected"},
		{"exclude listen excl closed", "state connected"},
		{"state connected exclude syn-sent", "state synchronized"},
		{"state big", "state big"},
		{"state time-wait state new-syn-recv", "state bucket"},
		{"state fin-wait1 exclude fin-wait-1", "exclude all"},
		{"state established ( sport = :1 or dport = :2 )", "state established sport = :1 or dport = :2"},
		{"state established and ( sport = :5432 or dst 10.0.0.0/8 )", "state established and ( sport = :5432 or dst = 10.0.0.0/8 )"},
		{"state established ( state listening ) or sport = 1", "state established ( state listening ) or sport = :1"},
		{"not state established state closing", "not state established state closing"},
		// Operators and their precedence.
		{"sport = 1 or sport = 2 and dport = 3", "sport = :1 or sport = :2 and dport = :3"},
		{"( sport = 1 or sport = 2 ) dport = 3", "( sport = :1 or sport = :2 ) and dport = :3"},
		{"sport=1||sport=2&&dport=3", "sport = :1 or sport = :2 and dport = :3"},
		{"(sport = :1)|(sport = :2)&dport=3", "sport = :1 or sport = :2 and dport = :3"},
		{"( ( sport = 1 and sport = 2 ) and dport = 3 )", "sport = :1 and sport = :2 and dport = :3"},
		{"not sport = 1 or dport = 2", "sport != :1 or dport = :2"},
		{"!(sport=1 or dport=2)", "not ( sport = :1 or dport = :2 )"},
		{"! ! autobound", "autobound"}, {"not BLIND and blind", "not blind and blind"},
		{"not sport >= 1024", "not sport >= :1024"},
		{"NOT Sport EQ 1 AND Dport LT 2", "sport != :1 and dport < :2"},
		{"sport neq 1 dport ge 2 dport le 3 sport gt 4 sport ne 5 sport leq 6 sport geq 7", "sport != :1 and dport >= :2 and dport <= :3 and sport > :4 and sport != :5 and sport <= :6 and sport >= :7"},
		// Hosts.
		{"src 10.0.0.1", "src = 10.0.0.1"},
		{"dst == 10.1.2.3/8:https", "dst = 10.0.0.0/8:443"},
		{"dst != 193.233.7/24", "dst != 193.233.7.0/24"},
		{"dst 10/8", "dst = 10.0.0.0/8"},
		{"dst [::1]:5432", "dst = [::1]:5432"},
		{"dst ::1", "dst = ::1"},
		{"dst fe80::1/10", "dst = fe80::/10"},
		{"dst [fe80::1]/10:80", "dst = [fe80::/10]:80"},
		{"dst [fe80::1/10]:80", "dst = [fe80::/10]:80"},
		{"dst fe80::/10:80", "dst = [fe80::/10]:80"},
		{"dst :5432", "dst = *:5432"},
		{"dst *:postgresql", "dst = *:5432"},
		{"dst *", "dst = *"},
		{"src 10.0.0.1:*", "src = 10.0.0.1"},
		{"src inet:*", "src = 0.0.0.0/0"},
		{"src inet6:[::2]:80", "src = [::2]:80"},
		{"src ::ffff:10.0.0.1", "src = ::ffff:10.0.0.1"},
		{"dport = inet6:443", "dst = ::/0 and dport = :443"},
		{"dport != inet::443", "not ( dst = 0.0.0.0/0 and dport = :443 )"},
		// The others of ss.
		{"dev = eth0", "dev = 3"},
		{"dev != 0x7", "dev != 7"},
		{"fwmark = 0x10", "mark = 16"},
		{"fwmark 0x10/0xf0", "fwmark = 0x10/0xf0"},
		{"mark != 1/3", "fwmark != 0x1/0x3"},
		{"cgroup = /system.slice", "cgroup = /system.slice"}, {"cgroup = 77", "cgroup = 77"},
		{"cgroup != 81985529216486895", "cgroup != 81985529216486895"},
		// Ours.
		{"verdict = dead", "verdict = dead"},
		{"heard > 10m and sent <= 1d12h", "heard > 10m and sent <= 36h"},
		{"rtt >= 1.5ms", "rtt >= 1.5ms"},
		{"comm = postgres unit != *.service container abc*", "comm = postgres and unit != *.service and container = abc*"},
		{`comm = "my \"prog\" (1)"`, `comm = "my \"prog\" (1)"`},
		{`comm = my\ prog`, `comm = "my prog"`},
		{`unit = ""`, `unit = ""`},
		{"pid > 1 uid=0 inode = 5 cookie = 18446744073709551615 netns != 4026531840", "pid > 1 and uid = 0 and inode = 5 and cookie = 18446744073709551615 and netns != 4026531840"},
		{"recv-q > 0 or send-q < 0x10", "recv-q > 0 or send-q < 16"},
		{"timer = keepalive family = inet6 family != ipv4", "timer = keepalive and family = ipv6 and family != ipv4"},
	}
	for _, tt := range tests {
		f, err := ParseFilter(strings.Split(tt.in, " "), testResolver())
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if got := f.String(); got != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.in, got, tt.want)
		}
		again, err := ParseFilter([]string{f.String()}, Resolver{Cgroup: testResolver().Cgroup})
		if err != nil || !reflect.DeepEqual(f, again) {
			t.Errorf("%s: read back as %v, %v", f, again, err)
		}
	}
}

func TestParseFilterNothing(t *testing.T) {
	for _, words := range [][]string{nil, {""}, {" ", "\t"}} {
		f, err := ParseFilter(words, Resolver{})
		if err != nil || f.String() != "" || f.States() != defaultStates || f.Kernel(KernelSupport{}) != nil {
			t.Errorf("%q: %v, %v", words, f, err)
		}
	}
}

func TestParseFilterErrors(t *testing.T) {
	tests := []struct {
		in      string
		column  int
		msg     string // contained in Msg
		suggest string
	}{
		{"sprot = 1", 1, `unknown predicate "sprot"`, "sport"},
		{"sport = 1 annd dport = 2", 11, "unknown predicate", "and"},
		{"sport = 1 and annd dport = 2", 15, "unknown predicate", ""},
		{"frobnicate", 1, "one of: state exclude src dst", ""},
		{"state estab", 7, "unknown state", ""},
		{"state establihsed", 7, "unknown state", "established"},
		{"state = established", 7, "takes no operator", ""},
		{"established", 1, "unknown predicate", "state established"},
		{"exclude", 8, "state missing, one of: established", ""},
		{"verdict = deaf", 11, `unknown verdict "deaf"`, "dead"},
		{"verdict = 7", 11, "alive quiet suspect dead", ""},
		{"timer = keepalife", 9, "unknown timer", "keepalive"},
		{"family = ipv5", 10, "unknown family", "ipv4"},
		{"verdict > dead", 9, "verdict takes = or !=", ""},
		{"dst > 10.0.0.1", 5, "dst takes = or !=", ""},
		{"dst", 4, "value missing, want an address", ""},
		{"dst = )", 7, `")" instead of a value`, ""},
		{"dst = db.example.com", 7, "names are not resolved", ""},
		{"dst = 10.0.0.1/33", 7, "not an address", ""},
		{"dst = 193.233.7", 7, "not an address", ""},
		{"dst = fe80::1%eth0", 7, "not an address", ""},
		{"dst = [::1", 7, "no ] for the [", ""},
		{"dst = inet6:10.0.0.1", 7, "not of that family", ""},
		{"dst = :70000", 7, "not a port from 0 to 65535", ""},
		{"sport = gopher", 9, "nor a service known here", ""},
		{"sport = ", 9, "want a port such as :5432", ""},
		{"dev = wlan9", 7, `no interface "wlan9"`, ""},
		{"cgroup = /nowhere", 10, "no cgroup", ""},
		{"fwmark = 1/x", 10, "not a mark", ""},
		{"fwmark > 1", 8, "fwmark takes = or !=", ""},
		{"heard > 10", 9, "not a duration", ""},
		{"heard > -1s", 9, "not a duration", ""},
		{"uid = root", 7, "not a number from 0 to 4294967295", ""},
		{"pid = 2147483648", 7, "from 0 to 2147483647", ""},
		{"comm = [", 8, "bad pattern", ""},
		{"( sport = 1", 12, "no ) for the ( of column 1", ""},
		{"sport = 1 )", 11, "closes nothing", ""},
		{"state all )", 11, "unknown predicate", ""},
		{"sport = 1 or", 13, "predicate missing", ""},
		{"not", 4, "predicate missing", ""},
		{`comm = "a`, 8, "no closing", ""},
		{`comm = é\`, 9, `nothing after the \`, ""},
		{`"a b" = 1`, 1, `unknown predicate "a b"`, ""},
		{strings.Repeat("( ", 200), 2*maxNesting + 1, "nested deeper", ""},
		{strings.Repeat("!", 200), maxNesting + 1, "nested deeper", ""},
		{strings.Repeat("x", maxFilter), 1, "longer than 16 KiB", ""},
		{strings.Repeat("dst 1/8 ", 2000), 1, "when written out", ""},
	}
	for _, tt := range tests {
		f, err := ParseFilter([]string{tt.in}, testResolver())
		var fe *FilterError
		if !errors.As(err, &fe) {
			t.Errorf("%.60s: got %.60v, %v", tt.in, f, err)
			continue
		}
		if fe.Column != tt.column || !strings.Contains(fe.Msg, tt.msg) || fe.Suggestion != tt.suggest {
			t.Errorf("%.60s: column %d, %s, suggestion %q; want column %d, %s, %q", tt.in, fe.Column, fe.Msg, fe.Suggestion, tt.column, tt.msg, tt.suggest)
		}
		if strings.Contains(fe.Error(), "\n") {
			t.Errorf("%.60s: more than one line: %s", tt.in, fe)
		}
	}
}

func TestFilterErrorText(t *testing.T) {
	_, err := ParseFilter([]string{"state", "established\x1b[31m", "and", "sprot", "=", "1"}, Resolver{})
	var fe *FilterError
	if !errors.As(err, &fe) || strings.ContainsRune(fe.Error()+fe.Pointer(), '\x1b') {
		t.Errorf("escape sequence got through: %q %q", fe, fe.Pointer())
	}
	_, err = ParseFilter([]string{"uid\t=", "0\nand", "sprot", "=", "1"}, Resolver{})
	if !errors.As(err, &fe) {
		t.Fatal(err)
	}
	if got, want := fe.Error(), `parse filter: column 13: unknown predicate "sprot", did you mean "sport"?`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := fe.Pointer(), "uid = 0 and sprot = 1\n            ^"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// randomFilter makes text up from the whole language.
func randomFilter(r *rand.Rand, depth int) string {
	if depth > 0 && r.IntN(4) > 0 {
		a, b := randomFilter(r, depth-1), randomFilter(r, depth-1)
		forms := []string{a + " and " + b, a + "|" + b, a + " " + b, "( " + a + " )", "not " + a, "!(" + a + " or " + b + ")", "(" + a + ")" + b}
		return forms[r.IntN(len(forms))]
	}
	preds := []string{
		"state established", "exclude listening", "state syn-recv exclude closing", "exclude all", "src 10/8", "dst != [::1]:5",
		"dst :443", "src *", "sport inet:7", "dport != inet6:7", "sport<9", "dport >= 9", "dev = 2", "fwmark != 1/2", "mark = 4",
		"cgroup = 8", "autobound", "blind", "verdict != dead", "heard > 1d", "sent < 1.5s", "rtt = 1us", "pid = 4", "uid > 3", "cookie = 1",
		`comm = "a b"`, `unit != ""`, "container = x*", "timer = none", "timer != time-wait", "family = inet",
	}
	return preds[r.IntN(len(preds))]
}

func TestFilterStringReadsBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		text := randomFilter(r, 6)
		f, err := ParseFilter([]string{text}, Resolver{})
		if err != nil {
			if len(text) > 1000 { // long ones may outgrow the limits
				continue
			}
			t.Fatalf("%s: %v", text, err)
		}
		again, err := ParseFilter([]string{f.String()}, Resolver{})
		if err != nil || !reflect.DeepEqual(f, again) {
			t.Fatalf("%s\nwritten %s\nread    %v, %v", text, f, again, err)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{
		"state established and ( sport = :5432 or dst 10.0.0.0/8 )", "state all exclude listening (sport=1)|dport=[]",
		`comm = "a\"b" and not unit != x*`, "dst != [fe80::/10]:443 src inet6:*", "not ! ( heard > 1d2h ) fwmark 1/0x3",
		"exclude all ( state bucket ) or verdict = dead", "sport != inet:1 cookie=0xff", "\xff\\",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		filter, err := ParseFilter([]string{text}, Resolver{})
		if err != nil {
			var fe *FilterError
			if !errors.As(err, &fe) || fe.Column < 1 || strings.Count(fe.Error(), "\n") != 0 || strings.Count(fe.Pointer(), "\n") != 1 {
				t.Fatalf("%q: %#v", text, err)
			}
			return
		}
		again, err := ParseFilter([]string{filter.String()}, Resolver{})
		if err != nil || !reflect.DeepEqual(filter, again) {
			t.Fatalf("%q\nwritten %s\nread    %v, %v", text, filter, again, err)
		}
		sock := &Sock{Family: IPv4, State: Established}
		if filter.Match(&Subject{Sock: sock}) != No && !filter.States().Has(sock.State) {
			t.Fatalf("%q: States leaves out what matches", text)
		}
		_ = filter.Kernel(KernelSupport{Marks: true, Cgroups: true})
	})
}
