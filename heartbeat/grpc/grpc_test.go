package grpc_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	beat "deadpeer/heartbeat/grpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// counted counts what it accepts.
type counted struct {
	net.Listener
	accepted atomic.Int64
}

func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.accepted.Add(1)
	}
	return conn, err
}

func listen(t *testing.T, address string) *counted {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return &counted{Listener: l}
}

// serve serves the health service, unless there is none.
func serve(t *testing.T, l net.Listener, h grpc_health_v1.HealthServer, opts ...grpc.ServerOption) *grpc.Server {
	t.Helper()
	s := grpc.NewServer(opts...)
	if h != nil {
		grpc_health_v1.RegisterHealthServer(s, h)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
	return s
}

func target(t *testing.T, l net.Listener, opts beat.Options) *beat.Target {
	t.Helper()
	opts.DialOptions = append(opts.DialOptions, grpc.WithTransportCredentials(insecure.NewCredentials()))
	x, err := beat.New("passthrough:///"+l.Addr().String(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), x.Close()); err != nil {
			t.Error(err)
		}
	})
	return x
}

// A server that suffers no HTTP/2 PING more often than every 5 minutes, as they
// do by default, lets the beat be.
func TestNotTooManyPings(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	serve(t, l, health.NewServer(), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Minute}))
	x := target(t, l, beat.Options{})
	for range 30 {
		if err := x.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := l.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	h := health.NewServer()
	h.SetServingStatus("orders", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	l, bare := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	serve(t, l, h)
	serve(t, bare, nil)
	for _, test := range []struct {
		server  net.Listener
		service string
		want    string // of the error, "" for none
	}{
		{l, "", ""},
		{l, "orders", "service is NOT_SERVING"},
		{l, "nosuch", "unknown service"},
		{bare, "", ""},
	} {
		err := target(t, test.server, beat.Options{Service: test.service}).Ping(t.Context())
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("service %q: %v, want %q", test.service, err, test.want)
		}
	}
}

// hanging hangs until it is let go.
type hanging struct {
	grpc_health_v1.UnimplementedHealthServer
	hangs atomic.Bool
}

func (h *hanging) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if h.hangs.Load() {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

// A server that hangs costs a deadline. Reconnect replaces the connection, and
// ends the calls on the one before.
func TestReconnect(t *testing.T) {
	t.Parallel()
	l, h := listen(t, "127.0.0.1:0"), new(hanging)
	serve(t, l, h)
	x := target(t, l, beat.Options{})
	if err := x.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.hangs.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := x.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	ended := make(chan error)
	go func() { ended <- x.Ping(t.Context()) }()
	time.Sleep(50 * time.Millisecond) // it is under way
	if err := x.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("a call on the old connection: %v", err)
	}
	h.hangs.Store(false)
	if err := x.Ping(t.Context()); err != nil || l.accepted.Load() != 2 {
		t.Errorf("%v, %d connections, want 2", err, l.accepted.Load())
	}
}

func TestServerGoesAndComesBack(t *testing.T) {
	t.Parallel()
	l := listen(t, "127.0.0.1:0")
	s := serve(t, l, health.NewServer())
	x := target(t, l, beat.Options{})
	if err := x.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := x.Ping(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("a stopped server: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := x.Reconnect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("reconnected to nobody: %v", err)
	}
	serve(t, listen(t, l.Addr().String()), health.NewServer())
	if err := errors.Join(x.Reconnect(t.Context()), x.Ping(t.Context())); err != nil {
		t.Error(err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if err := x.Reconnect(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reconnected after the close: %v", err)
	}
}
