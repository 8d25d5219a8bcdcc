package beat_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"deadpeer/internal/beat"
)

// open connects, and pings once.
func open(t *testing.T, url string) (*beat.Endpoint, error) {
	t.Helper()
	e, err := beat.Open(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if err := e.Ping(t.Context()); err == nil || err.Error() != "not connected" {
		t.Errorf("before connecting: %v", err)
	}
	if err := e.Reconnect(t.Context()); err != nil {
		return e, err
	}
	return e, e.Ping(t.Context())
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestGRPC(t *testing.T) {
	t.Parallel()
	l, without := listen(t), listen(t)
	server, bare := grpc.NewServer(), grpc.NewServer()
	services := health.NewServer()
	services.SetServingStatus("orders", grpc_health_v1.HealthCheckResponse_SERVING)
	services.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(server, services)
	go func() { _ = server.Serve(l) }()
	go func() { _ = bare.Serve(without) }()
	t.Cleanup(bare.Stop)
	url := "grpc://" + l.Addr().String()
	for name, test := range map[string]struct{ url, want string }{
		"server":             {url, ""},
		"service":            {url + "/orders", ""},
		"not serving":        {url + "/down", "the service is not serving"},
		"unknown service":    {url + "/nobody", "the server knows no such service"},
		"no health service":  {"grpc://" + without.Addr().String(), ""},
		"TLS where there is": {"grpcs://" + l.Addr().String(), "tls: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, test.url)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	e, err := open(t, url)
	for range 3 {
		if err == nil {
			err = e.Ping(t.Context())
		}
	}
	if err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := e.Ping(t.Context()); err == nil {
		t.Error("a server that was stopped answered")
	}
}

// What a server that is none may answer is an error, in time.
func TestNoGRPC(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		kind, status, body, want string
	}{
		"no gRPC":       {"text/html", "", "<html>", `status 200 and content of type "text/html"`},
		"no status":     {"application/grpc", "", "\x00\x00\x00\x00\x02\x08\x01", `gRPC status ""`},
		"error":         {"application/grpc", "14", "", `gRPC status "14": "no\x1b[2J backend"`},
		"short":         {"application/grpc", "0", "\x00\x00", "no HealthCheckResponse"},
		"compressed":    {"application/grpc", "0", "\x01\x00\x00\x00\x02\x08\x01", "no HealthCheckResponse"},
		"wrong length":  {"application/grpc", "0", "\x00\xff\xff\xff\xff\x08\x01", "no HealthCheckResponse"},
		"cut field":     {"application/grpc", "0", "\x00\x00\x00\x00\x02\x12\x7f", "no HealthCheckResponse"},
		"cut number":    {"application/grpc", "0", "\x00\x00\x00\x00\x02\x08\x80", "no HealthCheckResponse"},
		"huge field":    {"application/grpc", "0", "\x00\x00\x00\x00\x0b\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no HealthCheckResponse"},
		"group":         {"application/grpc", "0", "\x00\x00\x00\x00\x01\x0b", "no HealthCheckResponse"},
		"other fields":  {"application/grpc", "0", "\x00\x00\x00\x00\x14\x12\x02hi\x1d....\x21........\x08\x01", ""},
		"empty message": {"application/grpc", "0", "\x00\x00\x00\x00\x00", "not serving"},
		"endless":       {"application/grpc", "0", strings.Repeat("x", 1<<16), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", test.kind)
				w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
				_, _ = w.Write([]byte(test.body))
				if test.status != "" {
					w.Header().Set("Grpc-Status", test.status)
					w.Header().Set("Grpc-Message", "no%1b[2J backend")
				}
			})}
			server.Protocols.SetUnencryptedHTTP2(true)
			l := listen(t)
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { _ = server.Close() })
			_, err := open(t, "grpc://"+l.Addr().String())
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// A server that ends connections by their age is never down for it.
func TestGRPCConnectionAge(t *testing.T) {
	t.Parallel()
	l := listen(t)
	server := grpc.NewServer(grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 50 * time.Millisecond, MaxConnectionAgeGrace: time.Millisecond}))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	e, err := open(t, "grpc://"+l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for range 50 {
		time.Sleep(10 * time.Millisecond)
		if err := e.Ping(t.Context()); err == nil {
			failed = 0
		} else if failed++; failed == 2 {
			t.Fatalf("twice in a row: %v", err)
		}
	}
}

func TestGRPCDeadline(t *testing.T) {
	t.Parallel()
	l := listen(t)
	conns := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			conns <- c
		}
	}()
	e, err := beat.Open("grpc://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = (<-conns).Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.Ping(ctx); err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("a server that says nothing: %v", err)
	}
}
