// Package grpc pings gRPC servers by their health service
// (grpc.health.v1.Health, github.com/grpc/grpc/blob/master/doc/health-checking.md).
//
//	target, err := grpc.New("10.0.0.9:50051", grpc.Options{DialOptions: …})
//	monitor.Add("orders", target)
//	client := pb.NewOrdersClient(target.ClientConn()) // the application's own calls
//
// A gRPC connection whose peer is gone is not given up by a call that misses
// its deadline. Reconnect closes it, so that the client, which the application
// may share, makes another. One that ends by itself, by RST or GOAWAY, gRPC
// replaces with the next call: under a ping that is one failure at most, between
// two pings none. A target is then up again without Reconnect.
//
// It is a call, and not the PING of HTTP/2: a proxy answers that for a dead
// server behind it, as its kernel answers TCP keepalive, and servers close
// connections that ping more often than every 5 minutes (too_many_pings).
//
// A server without the health service answers that it has none, which is an
// answer. Works on every OS, with no privileges.
package grpc

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"deadpeer/heartbeat"
)

// Options are how a [Target] connects and asks.
type Options struct {
	// Service is whose health is asked for, the whole server's when empty.
	Service string
	// DialOptions are for grpc.NewClient, which needs credentials among them.
	// A dialer is not: give Dial.
	DialOptions []grpc.DialOption
	// Dial connects. Nil means a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Target is a client with one server. Safe for concurrent use.
type Target struct {
	service string
	client  *grpc.ClientConn
	health  grpc_health_v1.HealthClient

	mu    sync.Mutex
	conns map[net.Conn]struct{} // that the client has
}

var _ heartbeat.Reconnecter = (*Target)(nil)

// New makes a client, which connects with its first ping. The target is
// gRPC's: HOST:PORT, or with a scheme that names its resolver.
func New(target string, opts Options) (*Target, error) {
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	t := &Target{service: opts.Service, conns: map[net.Conn]struct{}{}}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		c, err := opts.Dial(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		tracked := &conn{Conn: c, target: t}
		t.mu.Lock()
		t.conns[tracked] = struct{}{}
		t.mu.Unlock()
		return tracked, nil
	}
	client, err := grpc.NewClient(target, append(slices.Clip(opts.DialOptions), grpc.WithContextDialer(dial))...)
	if err != nil {
		return nil, fmt.Errorf("make gRPC client: %w", err)
	}
	t.client, t.health = client, grpc_health_v1.NewHealthClient(client)
	return t, nil
}

// ClientConn is the client. It is closed by Close.
func (t *Target) ClientConn() *grpc.ClientConn { return t.client }

// Ping asks for the health of the service. One that is not serving fails.
func (t *Target) Ping(ctx context.Context) error {
	answer, err := t.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: t.service})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil
	case status.Code(err) == codes.DeadlineExceeded: // which may come before ctx's own
		return fmt.Errorf("check health: %w", context.DeadlineExceeded)
	case err != nil:
		return fmt.Errorf("check health: %w", err)
	case answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("check health: service is %v", answer.GetStatus())
	}
	return nil
}

// Reconnect closes the client's connections, on which calls fail then, and
// waits for another.
func (t *Target) Reconnect(ctx context.Context) error {
	t.mu.Lock()
	old := make([]net.Conn, 0, len(t.conns))
	for c := range t.conns {
		old = append(old, c)
	}
	t.mu.Unlock()
	for _, c := range old {
		_ = c.Close() // gone already
	}
	t.client.ResetConnectBackoff()
	t.client.Connect()
	for {
		state := t.client.GetState()
		switch state {
		case connectivity.Ready:
			// Otherwise the client has not noticed the end of the old one yet.
			if t.connected() {
				return nil
			}
		case connectivity.Idle:
			t.client.Connect()
		case connectivity.Shutdown:
			return net.ErrClosed
		}
		if !t.client.WaitForStateChange(ctx, state) {
			return fmt.Errorf("wait for connection, which is %v: %w", state, ctx.Err())
		}
	}
}

func (t *Target) connected() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns) > 0
}

// Close closes the client. It may be called again.
func (t *Target) Close() error {
	if err := t.client.Close(); err != nil && status.Code(err) != codes.Canceled {
		return err
	}
	return nil
}

// conn is a connection that its target knows of.
type conn struct {
	net.Conn
	target *Target
}

// Close closes it.
func (c *conn) Close() error {
	c.target.mu.Lock()
	delete(c.target.conns, c)
	c.target.mu.Unlock()
	return c.Conn.Close()
}
