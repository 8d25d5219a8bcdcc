package session

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"deadpeer/internal/conn"
)

// Source is a database to look into: where it is, and as whom to log in. It
// shows itself without its password, whatever the verb.
type Source struct {
	engine   Engine
	user     string
	password secret
	host     string // "" with a socket
	port     uint16
	socket   string // path of a local socket (MySQL), or its folder (PostgreSQL)
	database string
	options  url.Values
	inline   bool // the password came with the URL
}

// secret is a password. It has no way out by printing.
type secret string

// String hides it.
func (secret) String() string { return "***" }

// GoString hides it.
func (secret) GoString() string { return "***" }

// scheme is what the schemes of URLs stand for.
type scheme struct {
	engine  Engine
	port    uint16
	options []string // allowed in the query
}

func schemeOf(name string) (s scheme, ok bool) {
	switch strings.ToLower(name) {
	case "firebird":
		return scheme{Firebird, 3050, []string{"role", "wire_crypt", "auth_plugin_name", "auth_plugin_list"}}, true
	case "postgres", "postgresql":
		return scheme{PostgreSQL, 5432, []string{"host", "sslmode", "sslrootcert", "sslcert", "sslkey"}}, true
	case "mysql":
		return scheme{MySQL, 3306, []string{"socket", "tls"}}, true
	case "mariadb":
		return scheme{MariaDB, 3306, []string{"socket", "tls"}}, true
	case "zeo":
		return scheme{ZEO, 8100, nil}, true
	}
	return s, false
}

var errURL = errors.New("not of the form ENGINE://USER:PASSWORD@HOST:PORT/DATABASE with ENGINE firebird, postgres, mysql, mariadb or zeo (in a password, write %2F for a slash and the like)")

// Parse reads the URL of a database:
//
//	firebird://SYSDBA@host:3050//srv/db/t.fdb     (//: an absolute path; /t: an alias)
//	postgres://watch@host:5432/postgres           ?host=/run/postgresql ?sslmode=…
//	mysql://watch@host:3306/  mariadb://…         ?socket=/run/mysqld/mysqld.sock ?tls=…
//	zeo://host:8100/1                             (the storage; without it: all)
//
// A user or password that is missing there comes from the environment, by
// getenv: ISC_USER and ISC_PASSWORD; PGUSER, PGPASSWORD and ~/.pgpass
// (PGPASSFILE); MYSQL_PWD and the [client] section of ~/.my.cnf. Those files
// are refused when others may read them. No error repeats the URL.
func Parse(raw string, getenv func(string) string) (Source, error) {
	s, err := parseURL(raw)
	if err == nil {
		err = s.complete(getenv)
	}
	if err != nil {
		return Source{}, fmt.Errorf("read database URL: %w", err)
	}
	return s, nil
}

func parseURL(raw string) (s Source, err error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || u.Opaque != "" || u.Fragment != "" {
		return s, errURL // the cause would repeat the password
	}
	kind, ok := schemeOf(u.Scheme)
	if !ok {
		return s, errURL
	}
	s = Source{engine: kind.engine, port: kind.port, host: u.Hostname(), options: u.Query()}
	if u.User != nil {
		var password string
		s.user = u.User.Username()
		password, s.inline = u.User.Password()
		s.password = secret(password)
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return s, errors.New("the port is not one of 1 to 65535")
		}
		s.port = uint16(n)
	}
	for name := range s.options {
		if !slices.Contains(kind.options, name) {
			return s, fmt.Errorf("%s URLs have no option %q; they have %s", kind.engine, conn.Printable(name), strings.Join(append(kind.options, "no other"), ", "))
		}
	}
	s.database = strings.TrimPrefix(u.Path, "/")
	switch kind.engine {
	case PostgreSQL:
		s.socket = s.options.Get("host")
	case MySQL, MariaDB:
		s.socket = s.options.Get("socket")
	}
	if s.socket != "" && !strings.HasPrefix(s.socket, "/") {
		return s, fmt.Errorf("local socket %q is not an absolute path", conn.Printable(s.socket))
	}
	if s.host == "" {
		s.host = "127.0.0.1"
	}
	return s, nil
}

// Inline reports whether the URL itself held the password.
func (s Source) Inline() bool { return s.inline }

// String gives the URL without the password, safe to show.
func (s Source) String() string {
	u := url.URL{Scheme: string(s.engine), Host: s.address()}
	if s.user != "" {
		u.User = url.User(s.user)
	}
	if s.database != "" || s.engine != ZEO {
		u.Path = "/" + s.database
	}
	if s.socket != "" {
		u.Host, u.RawQuery = "", "socket="+s.socket
	}
	return conn.Printable(u.String())
}

// GoString is String.
func (s Source) GoString() string { return s.String() }

func (s Source) address() string {
	return net.JoinHostPort(s.host, strconv.Itoa(int(s.port)))
}

// scrub takes the password out of what a driver or server said, and makes the
// rest safe to show.
func (s Source) scrub(message string) string {
	const telling = 4 // fewer characters are in any text
	if len(s.password) >= telling {
		message = strings.ReplaceAll(message, string(s.password), "***")
	}
	const longest = 300
	return text(message, longest)
}
