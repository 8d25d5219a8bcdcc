package session

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// env is an environment that has these variables only.
func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url  string
		env  []string
		want Source
	}{
		{"firebird://SYSDBA:pw@host//srv/t.fdb", nil, Source{engine: Firebird, user: "SYSDBA", password: "pw", inline: true, host: "host", port: 3050, database: "/srv/t.fdb"}},
		{"firebird://host/alias", []string{"ISC_USER", "u", "ISC_PASSWORD", "pw"}, Source{engine: Firebird, user: "u", password: "pw", host: "host", port: 3050, database: "alias"}},
		{"postgres://u@[::1]:99/d", []string{"PGPASSWORD", "pw"}, Source{engine: PostgreSQL, user: "u", password: "pw", host: "::1", port: 99, database: "d"}},
		{"postgresql://", []string{"USER", "joe"}, Source{engine: PostgreSQL, user: "joe", host: "127.0.0.1", port: 5432, database: "postgres"}},
		{"postgres:///d?host=/run/postgresql", []string{"PGUSER", "u"}, Source{engine: PostgreSQL, user: "u", host: "127.0.0.1", port: 5432, socket: "/run/postgresql", database: "d"}},
		{"mysql://u:p%2Fw@host", nil, Source{engine: MySQL, user: "u", password: "p/w", inline: true, host: "host", port: 3306}},
		{"mariadb://u@host:33/", []string{"MYSQL_PWD", "pw"}, Source{engine: MariaDB, user: "u", password: "pw", host: "host", port: 33}},
		{" zeo://host/1\n", nil, Source{engine: ZEO, host: "host", port: 8100, database: "1"}},
	} {
		got, err := Parse(tt.url, env(tt.env...))
		got.options = nil
		if err != nil || fmt.Sprintf("%#v %s", got, string(got.password)) != fmt.Sprintf("%#v %s", tt.want, string(tt.want.password)) ||
			got.user != tt.want.user || got.socket != tt.want.socket || got.inline != tt.want.inline || got.database != tt.want.database {
			t.Errorf("%s: %+v, %v", tt.url, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for url, says := range map[string]string{
		"":                                     "not of the form",
		"postgres":                             "not of the form",
		"oracle://u:hunter2@h/d":               "not of the form",
		"postgres://u:hunter2@h:port/d":        "not of the form",
		"postgres://u:hunter2%zz@h/d":          "not of the form",
		"postgres://u:hunter2@h:0/d":           "1 to 65535",
		"postgres://u:hunter2@h:65536/d":       "1 to 65535",
		"postgres://u:hunter2@h/d?passwd=x":    `no option "passwd"`,
		"postgres://u:hunter2@h/d?\x1b[2J=x":   "not of the form",
		"mysql://u:hunter2@h/?socket=relative": "absolute path",
		"firebird://h/d":                       "ISC_USER",
		"firebird://u:hunter2@h":               "no database",
	} {
		_, err := Parse(url, env())
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// A password shows nowhere, whatever the verb.
func TestSecretStaysIn(t *testing.T) {
	t.Parallel()
	s, err := Parse("postgres://u:hunter2@h/d?sslmode=disable", env())
	if err != nil {
		t.Fatal(err)
	}
	db, err := Open(s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for _, shown := range []string{fmt.Sprint(s), fmt.Sprintf("%+v %#v %q %x", s, s, s, s), fmt.Sprintf("%v %+v %#v", &s, &s, &s),
		fmt.Sprint(db.Source()), s.scrub("login as u:hunter2 failed"), fmt.Sprintf("%v %s %#v", s.password, s.password, s.password)} {
		if strings.Contains(shown, "hunter2") || strings.Contains(shown, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("shown: %s", shown)
		}
	}
	if s.String() != "postgresql://u@h:5432/d" || !s.Inline() {
		t.Errorf("%s", s)
	}
}

func TestFilesOfPasswords(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(home, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write(".pgpass", "# comment\nother:5432:*:*:wrong\nlocalhost:*:*:u:socket\n10.0.0.1:5432:*:u:se\\:cr\\\\et\n", 0o600)
	write(".my.cnf", "[mysqld]\nuser=mysql\n[client]\nuser = watch\npassword=\"a=b\"\n", 0o600)
	for url, want := range map[string]string{
		"postgres://u@10.0.0.1/d":             `u se:cr\et`,
		"postgres://u@10.0.0.1:99/d":          "u ",
		"postgres://v@10.0.0.1/d":             "v ",
		"postgres://u@/d?host=/run/pg":        "u socket",
		"postgres://u:@10.0.0.1/d":            "u ",
		"mysql://h/":                          "watch a=b",
		"mysql://watch@h/":                    "watch a=b",
		"mysql://other@h/":                    "other ",
		"mariadb://watch:inline@h/":           "watch inline",
		"firebird://u:x@h/d":                  "u x",
		"zeo://h":                             " ",
		"postgres://u@10.0.0.1/d?sslmode=bad": `u se:cr\et`,
	} {
		s, err := Parse(url, env("HOME", home))
		if err != nil || s.user+" "+string(s.password) != want {
			t.Errorf("%s: %s %s, %v", url, s.user, string(s.password), err)
		}
	}
	if runtime.GOOS != "windows" { // where modes say nothing
		if err := os.Chmod(filepath.Join(home, ".pgpass"), 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("postgres://u@10.0.0.1/d", env("HOME", home)); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("a file that others may read: %v", err)
		}
		for _, mode := range []os.FileMode{0o604, 0o620, 0o601} {
			if _, err := ReadFile(write("wide", "x", mode)); err == nil || !strings.Contains(err.Error(), "chmod 600") {
				t.Errorf("mode %o: %v", mode, err)
			}
		}
	}
	if _, err := ReadFile(home); err == nil {
		t.Error("a folder was read")
	}
	if _, err := ReadFile(write("long", strings.Repeat("x", maxSecretFile+1), 0o600)); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("a long file: %v", err)
	}
	if _, err := ReadFile(filepath.Join(home, "none")); err == nil {
		t.Error("no file was read")
	}
	got := URLs([]byte("# x\n\n zeo://a \r\nzeo://b"))
	if len(got) != 2 || got[0] != "zeo://a" || got[1] != "zeo://b" {
		t.Errorf("%q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("postgres://u:p@h:1/d?host=/x")
	f.Add("firebird://u:p@[::1]//x")
	f.Add("mysql://%zz")
	f.Fuzz(func(t *testing.T, raw string) {
		s, err := Parse(raw, env("ISC_USER", "u"))
		if err != nil {
			return
		}
		if shown := s.String(); strings.ContainsAny(shown, "\x1b\n") {
			t.Errorf("%q shows as %q", raw, shown)
		}
		if db, err := Open(s, Options{}); err == nil {
			_ = db.Close()
		}
	})
}

func FuzzPasswordFiles(f *testing.F) {
	f.Add([]byte("h:1:d:u:p\\:w\n*:*:*:*:\\"))
	f.Add([]byte("[client]\nuser=\"\npassword='x'"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		pgpass(b, "h", "1", "d", "u")
		mycnf(b)
		URLs(b)
	})
}
