package zeo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/internal/holder"
)

// Options are how a [Client] connects. The zero value is good.
type Options struct {
	// Storage is the name of the storage on the server, "1" when empty.
	Storage string
	// TLS is for servers that want it from the first byte on. Nil means none.
	// An empty ServerName is taken from the address.
	TLS *tls.Config
	// Dial connects. Nil means a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client is one registered connection to a ZEO server, and a target of package
// heartbeat. Safe for concurrent use.
type Client struct {
	address string
	opts    Options
	held    holder.Of[*session]
}

var (
	_ heartbeat.Target      = (*Client)(nil)
	_ heartbeat.Hearer      = (*Client)(nil)
	_ heartbeat.Reconnecter = (*Client)(nil)
)

// ErrNotConnected is the error of a [Client] that has no connection at present.
var ErrNotConnected = errors.New("not connected to the ZEO server")

// ServerError is an exception that the server answered with.
type ServerError struct {
	Class string // such as builtins.ValueError
	Text  string // its arguments
}

func (e *ServerError) Error() string {
	return fmt.Sprintf("ZEO server answered with %q: %q", e.Class, e.Text)
}

// New makes a client that is not connected: its first pings fail, so that a
// monitor has it reconnect.
func New(address string, opts Options) *Client {
	if opts.Storage == "" {
		opts.Storage = "1"
	}
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	return &Client{address: address, opts: opts}
}

// Dial connects and registers. The storage's name must exist on the server.
func Dial(ctx context.Context, address string, opts Options) (*Client, error) {
	c := New(address, opts)
	if err := c.Reconnect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Ping calls get_info and waits for the answer.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.call(ctx)
	return err
}

// Info is what the server tells of a storage. Names are the server's: escape
// them before they are shown.
type Info struct {
	Name   string
	Size   int64 // bytes
	Length int64 // objects
	// All has every entry of the answer: int64, float64, bool, nil, string,
	// []byte, []any and map[string]any.
	All map[string]any
}

// Info is [Client.Ping] that reads the answer.
func (c *Client) Info(ctx context.Context) (Info, error) {
	r, err := c.call(ctx)
	if err != nil {
		return Info{}, err
	}
	value, err := r.value()
	if err != nil {
		return Info{}, fmt.Errorf("read answer to get_info: %w", err)
	}
	all, ok := value.(map[string]any)
	if !ok {
		return Info{}, fmt.Errorf("read answer to get_info: got %T, want a dictionary", value)
	}
	info := Info{All: all}
	info.Name, _ = all["name"].(string)
	info.Size, _ = all["size"].(int64)
	info.Length, _ = all["length"].(int64)
	return info, nil
}

func (c *Client) call(ctx context.Context) (reply, error) {
	s, ok := c.held.Get()
	if !ok {
		return reply{}, ErrNotConnected
	}
	return s.call(ctx, "get_info")
}

// Heard is how long ago anything but the answer to a call came from the server,
// and negative when nothing has, or there is no connection.
func (c *Client) Heard() time.Duration {
	s, ok := c.held.Get()
	if !ok {
		return -1
	}
	return s.heard.Ago()
}

// Reconnect closes the connection, if any, and makes and registers another.
// Calls under way on the old one fail.
func (c *Client) Reconnect(ctx context.Context) error {
	if err := c.held.Replace(ctx, c.connect); err != nil {
		return fmt.Errorf("connect to ZEO server %s: %w", c.address, err)
	}
	return nil
}

// Close closes the connection. It may be called again.
func (c *Client) Close() error { return c.held.Close() }

func (c *Client) connect(ctx context.Context) (*session, error) {
	conn, err := c.opts.Dial(ctx, "tcp", c.address)
	if err != nil {
		return nil, err
	}
	if c.opts.TLS != nil {
		config := c.opts.TLS.Clone()
		if config.ServerName == "" && !config.InsecureSkipVerify {
			if config.ServerName, _, err = net.SplitHostPort(c.address); err != nil {
				_ = conn.Close() // err tells why
				return nil, err
			}
		}
		conn = tls.Client(conn, config)
	}
	s, err := handshake(ctx, conn)
	if err != nil {
		_ = conn.Close() // err tells why
		return nil, err
	}
	if _, err := s.call(ctx, "register", c.opts.Storage, true); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("register storage %q: %w", c.opts.Storage, err)
	}
	return s, nil
}
