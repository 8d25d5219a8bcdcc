// Package http pings HTTP servers over a connection that is held for it alone.
//
//	target, err := http.New("https://10.0.0.9/healthz", http.Options{})
//	monitor.Add("web", target)
//
// A URL with a path is asked for with GET, and any status below 500 is an
// answer of the application. For a URL without one, a server that speaks
// HTTP/2 is sent a PING (RFC 9113 section 6.7), which costs it next to nothing,
// but is answered by whatever ends the TLS connection: behind a proxy, give a
// path that the application itself answers. Other servers are asked for "/".
//
// Works on every OS, with no privileges.
package http

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http2"

	"deadpeer/heartbeat"
	"deadpeer/internal/holder"
)

// Options are how a [Target] connects and asks. The zero value is good.
type Options struct {
	// Header is sent with each request. Its Host stands for the URL's.
	Header http.Header
	// TLS is for https. Nil means the system's roots.
	TLS *tls.Config
	// Dial connects. Nil means a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// ErrNotConnected is the error of a [Target] that has no connection at present.
var ErrNotConnected = errors.New("not connected to the HTTP server")

// StatusError is a status of 500 or above: a server, or a proxy that has none.
type StatusError struct{ Code int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("answered with status %d %s", e.Code, http.StatusText(e.Code))
}

// Target is one connection. Safe for concurrent use.
type Target struct {
	url  *url.URL
	opts Options
	held holder.Of[conn]
}

var _ heartbeat.Reconnecter = (*Target)(nil)

// conn is a connection that can be asked.
type conn interface {
	ask(ctx context.Context) error
	Close() error
}

// Of an answer no more is read: of its body, and of what precedes it.
const mostBody, mostHeader = 1 << 20, 1 << 20

// New makes a target that is not connected: its first pings fail, so that a
// monitor has it reconnect. The URL's scheme is http or https; a user and
// password in it are sent as basic authentication.
func New(rawURL string, opts Options) (*Target, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("read URL: it is not one") // err would show a password
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("read URL: got %s, want http://HOST or https://HOST", u.Redacted())
	}
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	opts.Header = opts.Header.Clone()
	return &Target{url: u, opts: opts}, nil
}

// Ping asks and waits for the answer. A server may close an idle connection at
// any time (RFC 9112 section 9.5): then Ping makes another and asks on that.
func (t *Target) Ping(ctx context.Context) error {
	held, err := t.held.Ask(ctx, t.Reconnect, func(c conn) (broken bool, err error) {
		err = c.ask(ctx)
		_, answered := errors.AsType[*StatusError](err)
		return err != nil && !answered, err
	})
	if !held {
		return ErrNotConnected
	}
	return err
}

// Reconnect closes the connection, if any, and makes another.
func (t *Target) Reconnect(ctx context.Context) error {
	if err := t.held.Replace(ctx, t.connect); err != nil {
		return fmt.Errorf("connect to %s: %w", t.url.Host, err)
	}
	return nil
}

// Close closes the connection. It may be called again.
func (t *Target) Close() error { return t.held.Close() }

func (t *Target) connect(ctx context.Context) (conn, error) {
	port := t.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[t.url.Scheme]
	}
	address := net.JoinHostPort(t.url.Hostname(), port)
	c, err := t.opts.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if t.url.Scheme == "https" {
		secure := tls.Client(c, t.tls())
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = c.Close() // err tells why
			return nil, err
		}
		if secure.ConnectionState().NegotiatedProtocol == http2.NextProtoTLS && t.url.Path == "" && t.url.RawQuery == "" {
			return newPinger(secure)
		}
		c = secure
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return c, nil }
	transport := &http.Transport{
		DialContext: dial, DialTLSContext: dial, Protocols: new(http.Protocols),
		MaxResponseHeaderBytes: mostHeader, DisableCompression: true,
		HTTP2: &http.HTTP2Config{WriteByteTimeout: 10 * time.Second},
	}
	transport.Protocols.SetHTTP1(true)
	transport.Protocols.SetHTTP2(true)
	client, err := transport.NewClientConn(ctx, t.url.Scheme, address)
	if err != nil {
		_ = c.Close() // err tells why
		return nil, err
	}
	return &requester{client, t}, nil
}

func (t *Target) tls() *tls.Config {
	config := &tls.Config{}
	if t.opts.TLS != nil {
		config = t.opts.TLS.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = t.url.Hostname()
	}
	config.NextProtos = []string{http2.NextProtoTLS, "http/1.1"}
	return config
}

// requester asks by requests, whatever the version of HTTP.
type requester struct {
	*http.ClientConn
	target *Target
}

func (c *requester) ask(ctx context.Context) error {
	request, err := c.target.request(ctx)
	if err != nil {
		return err
	}
	response, err := c.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", c.target.url.Host, err)
	}
	// What of a body is left over costs an HTTP/1.1 connection.
	defer func() { _ = response.Body.Close() }()
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, mostBody))
	if response.StatusCode >= 500 {
		return &StatusError{response.StatusCode}
	}
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", c.target.url.Host, err)
	}
	return nil
}

func (t *Target) request(ctx context.Context) (*http.Request, error) {
	u := *t.url
	if u.Path == "" {
		u.Path = "/"
	}
	user := u.User
	u.User = nil
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	maps.Copy(request.Header, t.opts.Header)
	request.Host = cmp.Or(t.opts.Header.Get("Host"), request.Host) // net/http leaves out the header
	if user != nil {
		password, _ := user.Password()
		request.SetBasicAuth(user.Username(), password)
	}
	if request.Header.Get("User-Agent") == "" {
		request.Header.Set("User-Agent", "deadpeer-heartbeat")
	}
	return request, nil
}
