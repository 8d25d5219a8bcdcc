package session

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	mysqldriver "github.com/go-sql-driver/mysql"
)

func TestPeer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s    string
		sep  byte
		want string // "" when it has no port
	}{
		{"10.77.1.2:54034", ':', "10.77.1.2:54034"},
		{"::1:54034", ':', "[::1]:54034"},
		{"[fe80::1%eth0]:54034", ':', "[fe80::1]:54034"},
		{"::ffff:10.0.0.1:5", ':', "10.0.0.1:5"},
		{"desk.example.org:54034", ':', "invalid AddrPort"},
		{"localhost", ':', ""},
		{"10.0.0.1:0", ':', ""},
		{"10.0.0.1:65536", ':', ""},
		{"10.0.0.1:", ':', ""},
		{"", ':', ""},
		{"::1/44768", '/', "[::1]:44768"},
		{"::ffff:10.0.0.1/44768", '/', "10.0.0.1:44768"},
		{"10.0.0.1", '/', ""},
	} {
		got, ok := parsePeer(tt.s, tt.sep)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%q: %s, %v", tt.s, got, ok)
		}
	}
	if p, ok := parsePeer("desk:77", ':'); !ok || p.Port() != 77 || p.Addr().IsValid() {
		t.Errorf("a name: %v, %v", p, ok)
	}
}

func FuzzPeer(f *testing.F) {
	f.Add("10.0.0.1:5", byte(':'))
	f.Add("::1/5", byte('/'))
	f.Fuzz(func(t *testing.T, s string, sep byte) {
		if p, ok := parsePeer(s, sep); ok != (p.Port() != 0) || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			t.Errorf("%q: %v, %v", s, p, ok)
		}
	})
}

// What clients call themselves cannot reach the terminal.
func TestText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"psql":                      "psql",
		"\x1b[2Jpsql":               `\x1b[2Jpsql`,
		"a\nb\t  c":                 "a b c",
		"\u202egnp.exe":             `\u202egnp.exe`,
		"a\xffb":                    "a?b",
		strings.Repeat("x", 300):    strings.Repeat("x", 128) + "…",
		strings.Repeat("я", 300):    strings.Repeat("я", 64) + "…",
		strings.Repeat("\x00", 300): strings.Repeat(`\x00`, 32) + "…",
	} {
		if got := text(in, maxName); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("\x1b]0;title\a\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := text(s, maxName)
		if len(got) > maxName+len("…") || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u202e' }) {
			t.Errorf("%q: %q", s, got)
		}
	})
}

func TestInvertWaits(t *testing.T) {
	t.Parallel()
	v := View{Sessions: []Session{
		{ID: "10", WaitsFor: []string{"9", "9", "77", "10"}, waited: 2 * time.Second},
		{ID: "9"},
		{ID: "8", WaitsFor: []string{"9"}, waited: time.Second},
	}}
	v.sort()
	v.invertWaits()
	got := v.Find("9")
	if got == nil || !reflect.DeepEqual(got.Blocks, []string{"8", "10"}) || got.Blocked != 2 || got.BlockedFor != 2*time.Second {
		t.Errorf("%+v", got)
	}
	if ten := v.Find("10"); len(ten.Blocks) != 0 {
		t.Errorf("it blocks itself: %+v", ten)
	}
	if v.Find("7") != nil {
		t.Error("found what is not there")
	}
	other := *got
	if !v.Has(got) || !v.Has(&other) {
		t.Error("the session is not the same")
	}
	other.birth = "later"
	if v.Has(&other) {
		t.Error("another session with the same ID is the same")
	}
}

func TestLocksAreBounded(t *testing.T) {
	t.Parallel()
	var s Session
	for i := range 100 {
		s.addLock(fmt.Sprint("t", i))
		s.addLock("t0")
	}
	if len(s.Locks) != maxLocks+1 || s.Locks[maxLocks] != "…" {
		t.Errorf("%q", s.Locks)
	}
	if millis(-5) != 0 || millis(1<<62) <= 0 {
		t.Error("times out of range")
	}
}

// As fb_lock_print of Firebird 3.0 writes it.
const lockTable = `
LOCK_HEADER BLOCK
	Version: 146, Creation timestamp: 2026-11-21 10:50:56

LOCK BLOCK  94616
	Series: 4, State: 6, Size: 8, Length: 8, Data: 10
	Key: 000000012, Flags: 0x00, Pending request count:      0
	Requests (1):	forward:  94544, backward:  94544
		Request  94544, Owner:  93640, State: 6 (6), Flags: 0x00

LOCK BLOCK  81408
	Series: 4, State: 6, Size: 8, Length: 8, Data: 10
	Key: 000000010, Flags: 0x00, Pending request count:      1
	Requests (2):	forward:  81336, backward: 100160
		Request  81336, Owner:  78584, State: 6 (6), Flags: 0x00
		Request 100160, Owner:  93640, State: 0 (3), Flags: 0x02
`

func TestLockTable(t *testing.T) {
	t.Parallel()
	if got := parseLockTable([]byte(lockTable)); !reflect.DeepEqual(got, map[int64]int64{12: 10}) {
		t.Errorf("%v", got)
	}
}

func FuzzLockTable(f *testing.F) {
	f.Add([]byte(lockTable))
	f.Add([]byte("Key: 1,\nRequest Owner: State:"))
	f.Fuzz(func(_ *testing.T, b []byte) { parseLockTable(b) })
}

func TestHasDataLocks(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"8.0.36": true, "9.1.0-commercial": true, "5.7.44": false, "10.11.19-MariaDB-0+deb12u1": false, "": false,
	} {
		if hasDataLocks(version) != want {
			t.Errorf("%s: %v", version, !want)
		}
	}
}

// The messages are those of MySQL 9.7 and MariaDB 10.11.
func TestMySQLGrant(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err   error
		maria bool
		want  string
	}{
		{&mysqldriver.MySQLError{Number: 1095, Message: "You are not owner of thread 12"}, false, "GRANT CONNECTION_ADMIN ON *.* TO 'o''x'"},
		{&mysqldriver.MySQLError{Number: 1095, Message: "You are not owner of thread 12"}, true, "GRANT CONNECTION ADMIN ON *.* TO 'o''x'"},
		{&mysqldriver.MySQLError{Number: 1142, Message: "SELECT command denied to user 'WATCH'@'127.0.0.1' for table 'data_lock_waits'"}, false, "GRANT SELECT ON performance_schema.* TO 'o''x'"},
		{&mysqldriver.MySQLError{Number: 1227, Message: "Access denied; you need (at least one of) the SYSTEM_USER privilege(s) for this operation"}, false, "GRANT SYSTEM_USER ON *.* TO 'o''x'"},
		{&mysqldriver.MySQLError{Number: 1227, Message: "kein Zutritt"}, false, "GRANT PROCESS ON *.* TO 'o''x'"},
		{&mysqldriver.MySQLError{Number: 1045, Message: "Access denied"}, false, ""},
		{errors.New("x"), false, ""},
		{nil, false, ""},
	} {
		m := &mysql{source: Source{user: "o'x"}, maria: tt.maria}
		if got := m.grant(tt.err); got != tt.want {
			t.Errorf("%v: %s", tt.err, got)
		}
	}
}

func TestPostgresState(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		state string
		in    bool
		want  State
	}{{"active", true, Active}, {"idle in transaction", true, IdleInTransaction}, {"idle in transaction (aborted)", true, IdleInTransaction}, {"idle", false, Idle}} {
		if got := postgresState(tt.state, tt.in); got != tt.want {
			t.Errorf("%s: %s", tt.state, got)
		}
	}
}
