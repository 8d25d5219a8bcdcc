// Package websocket pings a WebSocket server by a ping frame (RFC 6455 section
// 5.5.2) over a connection of its own.
//
//	target, err := websocket.New("wss://10.0.0.9/events", websocket.Options{})
//	defer target.Close()
//	monitor.Add("events", target)
//
// After the handshake proxies pass a WebSocket's bytes on. The pong comes from
// the server's program, and is missing when that is gone while a proxy still
// answers TCP keepalive for it.
//
// Messages from the server are read and dropped, and count as signs of life,
// as its own pings do ([Target.Heard]). For a connection that the application
// has with github.com/coder/websocket, heartbeat.PingFunc(conn.Ping) does.
//
// Works on every OS, with no privileges.
package websocket

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/internal/holder"
)

// Options are how a [Target] connects. The zero value is good.
type Options struct {
	// Header is sent with the handshake, such as Authorization or Origin. A
	// user and a password in the URL become one. Its Host stands for the
	// URL's. It is not part of any error.
	Header http.Header
	// Subprotocols are offered to the server.
	Subprotocols []string
	// TLS is for URLs with wss. An empty ServerName is taken from the URL.
	TLS *tls.Config
	// Dial connects. Nil means a net.Dialer. Proxies of the environment are
	// not used.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Target is one connection to a server. Safe for concurrent use.
type Target struct {
	url  *url.URL
	opts Options
	held holder.Of[*session]
}

var (
	_ heartbeat.Hearer      = (*Target)(nil)
	_ heartbeat.Reconnecter = (*Target)(nil)
)

// ErrNotConnected is the error of a [Target] that has no connection at present.
var ErrNotConnected = errors.New("not connected to the WebSocket server")

// New makes a target that is not connected: its first pings fail, so that a
// monitor has it reconnect. The URL has ws or wss and a host. An error does not
// repeat it, since it may hold a password.
func New(rawURL string, opts Options) (*Target, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Hostname() == "" {
		return nil, errors.New("read URL: want one like wss://host/path or ws://host:8080/path")
	}
	opts.Header = opts.Header.Clone()
	return &Target{url: u, opts: opts}, nil
}

// Ping sends a ping frame and waits for its pong.
func (t *Target) Ping(ctx context.Context) error {
	s, ok := t.held.Get()
	if !ok {
		return ErrNotConnected
	}
	if err := s.ping(ctx); err != nil {
		return fmt.Errorf("ping WebSocket server: %w", err)
	}
	return nil
}

// Heard is how long ago anything but the answer to a ping came from the server,
// and negative when nothing has, or there is no connection.
func (t *Target) Heard() time.Duration {
	s, ok := t.held.Get()
	if !ok {
		return -1
	}
	return s.heard.Ago()
}

// Reconnect closes the connection, if any, and makes another. A ping under way
// on the old one fails.
func (t *Target) Reconnect(ctx context.Context) error {
	if err := t.held.Replace(ctx, t.connect); err != nil {
		return fmt.Errorf("connect to WebSocket server %s: %w", t.url.Host, err)
	}
	return nil
}

// Close closes the connection. It may be called again.
func (t *Target) Close() error { return t.held.Close() }
