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
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"deadpeer/heartbeat"
)

// Options are how a [Target] connects and asks. The zero value is good.
type Options struct {
	// Header is sent with each request.
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

	mu     sync.Mutex
	conn   *conn
	closed bool
}

var _ heartbeat.Reconnecter = (*Target)(nil)

// conn is a connection: by HTTP/2, or by HTTP/1.1 with its reader.
type conn struct {
	net.Conn
	h2 *http2.ClientConn //nolint:staticcheck // http.ClientConn, its successor, has no Ping

	mu     sync.Mutex // one request of HTTP/1.1 at a time
	reader *bufio.Reader
	rest   *io.LimitedReader // what may still be read of an answer
}

func newConn(c net.Conn) *conn {
	rest := &io.LimitedReader{R: c}
	return &conn{Conn: c, reader: bufio.NewReader(rest), rest: rest}
}

// Of an answer no more is read: of its body, and of all with what precedes it.
const mostBody, mostAnswer = 1 << 20, 2 << 20

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
	return &Target{url: u, opts: opts}, nil
}

// Ping asks and waits for the answer. A server may close an idle connection at
// any time (RFC 9112 section 9.5): then Ping makes another and asks on that.
func (t *Target) Ping(ctx context.Context) error {
	t.mu.Lock()
	c := t.conn
	t.mu.Unlock()
	if c == nil {
		return ErrNotConnected
	}
	err := t.ask(ctx, c)
	var status *StatusError
	if err == nil || errors.As(err, &status) || ctx.Err() != nil {
		return err
	}
	if err := t.Reconnect(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	c = t.conn
	t.mu.Unlock()
	if c == nil { // closed meanwhile
		return ErrNotConnected
	}
	return t.ask(ctx, c)
}

func (t *Target) ask(ctx context.Context, c *conn) error {
	if c.h2 != nil && t.url.Path == "" && t.url.RawQuery == "" {
		return c.h2.Ping(ctx)
	}
	request, err := t.request(ctx)
	if err != nil {
		return err
	}
	response, done, err := c.roundTrip(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", t.url.Redacted(), err)
	}
	defer done()
	n, err := io.Copy(io.Discard, io.LimitReader(response.Body, mostBody))
	if c.h2 == nil && (response.Close || n == mostBody) {
		_ = c.Close() // the next ping makes another
	}
	// An HTTP/2 body is cancelled by this, an HTTP/1.1 body read to its end:
	// that of a closed connection fails, which says nothing.
	_ = response.Body.Close()
	if response.StatusCode >= 500 {
		return &StatusError{response.StatusCode}
	}
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", t.url.Redacted(), err)
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
	if user != nil {
		password, _ := user.Password()
		request.SetBasicAuth(user.Username(), password)
	}
	if request.Header.Get("User-Agent") == "" {
		request.Header.Set("User-Agent", "deadpeer-heartbeat")
	}
	return request, nil
}

// roundTrip gives the answer, and what to call when it was read.
func (c *conn) roundTrip(request *http.Request) (_ *http.Response, done func(), err error) {
	if c.h2 != nil {
		response, err := c.h2.RoundTrip(request)
		return response, func() {}, err
	}
	ctx := request.Context()
	c.mu.Lock()
	// A connection whose request was given up is of no use to another.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	release := func() {
		stop()
		c.mu.Unlock()
	}
	defer func() {
		if err != nil {
			release()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
		}
	}()
	if err := request.Write(c.Conn); err != nil {
		return nil, nil, err
	}
	c.rest.N = mostAnswer
	for {
		response, err := http.ReadResponse(c.reader, request)
		// Interim answers precede the final one (RFC 9110 section 15.2).
		if err != nil || response.StatusCode >= 200 {
			return response, release, err
		}
	}
}

// Reconnect closes the connection, if any, and makes another.
func (t *Target) Reconnect(ctx context.Context) error {
	t.mu.Lock()
	old := t.conn
	t.mu.Unlock()
	if old != nil {
		t.drop(old)
	}
	c, err := t.connect(ctx)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", t.url.Redacted(), err)
	}
	t.mu.Lock()
	other, closed := t.conn, t.closed // other is of a Reconnect meanwhile
	if !closed {
		t.conn = c
	}
	t.mu.Unlock()
	if closed {
		t.drop(c)
		return net.ErrClosed
	}
	if other != nil {
		t.drop(other)
	}
	return nil
}

func (t *Target) connect(ctx context.Context) (*conn, error) {
	port := t.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[t.url.Scheme]
	}
	tcp, err := t.opts.Dial(ctx, "tcp", net.JoinHostPort(t.url.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if t.url.Scheme == "http" {
		return newConn(tcp), nil
	}
	config := &tls.Config{}
	if t.opts.TLS != nil {
		config = t.opts.TLS.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = t.url.Hostname()
	}
	config.NextProtos = []string{http2.NextProtoTLS, "http/1.1"}
	secure := tls.Client(tcp, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	c := newConn(secure)
	if secure.ConnectionState().NegotiatedProtocol == http2.NextProtoTLS {
		transport := &http2.Transport{WriteByteTimeout: 10 * time.Second} //nolint:staticcheck // as for h2
		if c.h2, err = transport.NewClientConn(secure); err != nil {      //nolint:staticcheck // as for h2
			return nil, errors.Join(err, secure.Close())
		}
	}
	return c, nil
}

// drop closes c.
func (t *Target) drop(c *conn) {
	t.mu.Lock()
	if t.conn == c {
		t.conn = nil
	}
	t.mu.Unlock()
	if c.h2 != nil {
		_ = c.h2.Close()
	}
	_ = c.Close() // gone already, as likely as not
}

// Close closes the connection.
func (t *Target) Close() error {
	t.mu.Lock()
	c := t.conn
	t.closed = true
	t.mu.Unlock()
	if c != nil {
		t.drop(c)
	}
	return nil
}
