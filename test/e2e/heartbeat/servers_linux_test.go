package heartbeat

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"deadpeer/internal/servertest"
	"deadpeer/internal/testnet"
	"deadpeer/internal/zeotest"
)

const password = "e2e-secret"

func postgres(t testing.TB, host *testnet.Host) {
	t.Helper()
	servertest.PostgreSQL(t, host, servertest.Account{Name: "boss", Password: password})
}

func mariadb(t testing.TB, host *testnet.Host) {
	t.Helper()
	servertest.MariaDB(t, host, servertest.Account{Name: "boss", Password: password})
}

func firebird(t testing.TB, host *testnet.Host) (database string) {
	t.Helper()
	return servertest.Firebird(t, host, password, nil).Folder + "/items.fdb"
}

func redisServer(t testing.TB, host *testnet.Host, port int) {
	t.Helper()
	servertest.Serve(t, host, nil, t.TempDir(), nil, servertest.Program(t, "redis-server"), "--port", strconv.Itoa(port), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
}

// listen listens on the host, until the end of the test.
func listen(t testing.TB, host *testnet.Host, port int) net.Listener {
	t.Helper()
	l, err := host.Listen(t.Context(), "tcp", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// services are servers of our own: ZEO with either protocol, HTTP, WebSocket
// and gRPC.
func services(t testing.TB, host *testnet.Host) {
	t.Helper()
	for port, msgpack := range map[int]bool{8100: false, 8101: true} {
		s := zeotest.Serve(listen(t, host, port), msgpack)
		t.Cleanup(s.Close)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "good") })
	mux.HandleFunc("GET /feed", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		<-c.CloseRead(context.Background()).Done()
	})
	web := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = web.Serve(listen(t, host, 8080)) }()
	t.Cleanup(func() { _ = web.Close() })
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	go func() { _ = rpc.Serve(listen(t, host, 50051)) }()
	t.Cleanup(rpc.Stop)
}
