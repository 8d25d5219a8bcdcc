package beat_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"deadpeer/internal/beat"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	for raw, name := range map[string]string{
		"zeo://10.0.0.9:8100/1?tls=true":                            "zeo://10.0.0.9:8100/1",
		"firebird://SYSDBA:hid%20den@h/db/t.fdb":                    "firebird://SYSDBA@h/db/t.fdb",
		"postgres://u:hidden@h/db?sslmode=disable&password=hidden2": "postgres://u@h/db",
		"mysql://u:hidden@[fd00::1]/db?tls=false":                   "mysql://u@[fd00::1]/db",
		"mariadb://h":                       "mariadb://h",
		"redis://:hidden@h:6380/2":          "redis://h:6380/2",
		"https://u:hidden@h/x?token=hidden": "https://u@h/x",
		"grpc://h:50051/orders":             "grpc://h:50051/orders",
		"wss://h/feed":                      "wss://h/feed",
		"tcp://[::1]:22":                    "tcp://[::1]:22",
		"tcp://h:22/\u202ex":                "tcp://h:22/%E2%80%AEx",
	} {
		e, err := beat.Open(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if e.Name != name {
			t.Errorf("%s is shown as %s, want %s", raw, e.Name, name)
		}
		if err := e.Close(); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestTextHidesPasswords(t *testing.T) {
	t.Parallel()
	e, err := beat.Open("postgres://u:hid%20den@h/db?password=other")
	if err != nil {
		t.Fatal(err)
	}
	got := e.Text(errors.New("u with hid den, hid%20den or other failed\x1b[2J"))
	if want := `u with xxxxx, xxxxx or xxxxx failed\x1b[2J`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// pgx tries once with TLS and once without, and tells of both in lines.
func TestTextIsOneLine(t *testing.T) {
	t.Parallel()
	e, err := beat.Open("postgres://h/db")
	if err != nil {
		t.Fatal(err)
	}
	got := e.Text(errors.New("failed to connect:\n\t10.0.0.1:5432: refused\n\t10.0.0.1:5432: refused"))
	if want := "failed to connect: 10.0.0.1:5432: refused"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLongTextIsCut(t *testing.T) {
	t.Parallel()
	e, err := beat.Open("tcp://h:1")
	if err != nil {
		t.Fatal(err)
	}
	if got := e.Text(errors.New("x" + strings.Repeat("ä", 5000))); len(got) > 510 || !strings.HasSuffix(got, "ä…") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"ftp://u:hidden@h":               `scheme "ftp" is not one of zeo, `,
		"h:5432":                         `scheme "h" is not one of`,
		"redis:u:hidden@h":               "no host",
		"u:hidden@h/x":                   `scheme "u" is not one of`,
		"postgres://":                    "no host",
		"tcp://h":                        "no port",
		"grpc://h":                       "no port",
		"firebird://h/db":                "no user",
		"zeo://h/1?tls=maybe":            "tls is neither true nor false",
		"http://u:hidden@[":              "not a URL",
		"postgres://u:hidden@h:port/x":   "not a URL",
		"postgres://u:hidden@h/x?port=x": "port",
		"redis://u:hidden@h/notanumber":  "redis: the database is not a number",
		"mysql://u:hidden@h/x?tls=never": "unknown config name",
	} {
		_, err := beat.Open(raw)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: got %v, want %q", raw, err, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, s := range []string{"zeo://h/1", "postgres://u:hidden@h/db", "firebird://u:p@h/db", "mysql://h/db?x=y", "redis://h", "tcp://h:1", "x", "http://%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		e, err := beat.Open(raw)
		if err != nil {
			return
		}
		if strings.ContainsAny(e.Name, "\x1b\n\r") {
			t.Errorf("%q is shown as %q", raw, e.Name)
		}
		_ = e.Close()
	})
}

// panics is a driver that does not get over what a server sends.
type panics struct{}

func (panics) Ping(context.Context) error      { panic("index out of range [hidden]") }
func (panics) Reconnect(context.Context) error { panic("index out of range [hidden]") }

func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	e, err := beat.Open("firebird://u:hidden@h/db")
	if err != nil {
		t.Fatal(err)
	}
	e.Target = panics{}
	for doing, err := range map[string]error{"connecting to": e.Reconnect(t.Context()), "pinging": e.Ping(t.Context())} {
		want := "the firebird driver panicked at " + doing + " firebird://u@h/db: index out of range [xxxxx]"
		if err == nil || e.Text(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
