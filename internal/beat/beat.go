// Package beat makes heartbeat targets of URLs, one connection each. Any OS,
// as far as the protocol's package goes; no privileges.
package beat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"deadpeer/heartbeat"
	"deadpeer/internal/conn"
)

// Endpoint is what a URL names. It is not connected before Reconnect.
type Endpoint struct {
	// Name is the URL as it may be shown: without password, query and
	// anything that does not print.
	Name string
	Target
	secrets []string
	close   func() error
}

// Target is a target of package heartbeat that connects.
type Target interface {
	heartbeat.Target
	heartbeat.Reconnecter
}

// schemes are the protocols there are, and how each is opened.
func schemes() map[string]func(*url.URL) (Target, func() error, error) {
	return map[string]func(*url.URL) (Target, func() error, error){
		"zeo": openZEO, "firebird": openFirebird, "postgres": openPostgres, "postgresql": openPostgres,
		"mysql": openMySQL, "mariadb": openMySQL, "redis": openRedis, "rediss": openRedis,
		"http": openHTTP, "https": openHTTP, "grpc": openGRPC, "grpcs": openGRPC,
		"ws": openWebSocket, "wss": openWebSocket, "tcp": openTCP,
	}
}

// known are the schemes for those who meant another.
const known = "zeo, firebird, postgres, mysql, redis, rediss, http, https, grpc, grpcs, ws, wss, tcp"

// Open makes the endpoint of a URL. It connects to nothing. Errors do not
// repeat what may be a password.
func Open(raw string) (*Endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("not a URL; want SCHEME://HOST:PORT/…")
	}
	e := &Endpoint{Name: show(u), secrets: secrets(u)}
	open := schemes()[u.Scheme]
	switch {
	case open == nil:
		return nil, fmt.Errorf("%s: scheme %q is not one of %s", e.Name, conn.Printable(u.Scheme), known)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%s: no host", e.Name)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("%s: port %s is not from 1 to 65535", e.Name, port)
		}
	}
	if e.Target, e.close, err = open(u); err != nil {
		return nil, fmt.Errorf("%s: %s", e.Name, e.Text(err))
	}
	return e, nil
}

// Reconnect connects. Drivers of databases may panic at what a server sends:
// that is an error of Reconnect, Ping or Close, whoever calls them.
func (e *Endpoint) Reconnect(ctx context.Context) (err error) {
	defer e.catch("connecting to", &err)
	return e.Target.Reconnect(ctx)
}

// Ping pings.
func (e *Endpoint) Ping(ctx context.Context) (err error) {
	defer e.catch("pinging", &err)
	return e.Target.Ping(ctx)
}

// Untimed reports whether the protocol's pings tell no latency.
func (e *Endpoint) Untimed() bool {
	u, ok := e.Target.(heartbeat.Untimed)
	return ok && u.Untimed()
}

// Close closes the connection.
func (e *Endpoint) Close() (err error) {
	defer e.catch("closing", &err)
	return e.close()
}

func (e *Endpoint) catch(doing string, err *error) {
	if p := recover(); p != nil {
		scheme, _, _ := strings.Cut(e.Name, ":")
		*err = fmt.Errorf("the %s driver panicked at %s %s: %v", scheme, doing, e.Name, p)
	}
}

// mostText bounds an error's text: a server may answer with any.
const mostText = 500

// Text is an error as it may be shown.
func (e *Endpoint) Text(err error) string {
	text := err.Error()
	for _, secret := range e.secrets {
		text = strings.ReplaceAll(text, secret, "xxxxx")
	}
	// Drivers tell of each attempt in a line of its own, often the same.
	var lines []string
	for line := range strings.Lines(text) {
		if line = conn.Printable(strings.Join(strings.Fields(line), " ")); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	text = strings.Join(lines, " ")
	if len(text) > mostText {
		text = strings.ToValidUTF8(text[:mostText], "") + "…"
	}
	return text
}

func show(u *url.URL) string {
	shown := *u
	shown.Opaque, shown.RawQuery, shown.Fragment, shown.RawFragment = "", "", "", ""
	if shown.User = nil; u.User.Username() != "" {
		shown.User = url.User(u.User.Username())
	}
	return conn.Printable(shown.String())
}

// secrets are the passwords in a URL, as written and as meant.
func secrets(u *url.URL) (list []string) {
	add := func(s string) {
		if s != "" {
			list = append(list, s, url.QueryEscape(s), url.PathEscape(s))
		}
	}
	if u.User != nil {
		password, _ := u.User.Password()
		add(password)
	}
	for name, values := range u.Query() {
		if name = strings.ToLower(name); strings.Contains(name, "pass") || strings.Contains(name, "token") || strings.Contains(name, "secret") || strings.Contains(name, "key") {
			for _, v := range values {
				add(v)
			}
		}
	}
	return list
}

// hostPort is the URL's, or its host with the protocol's own port.
func hostPort(u *url.URL, port string) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), port)
}
