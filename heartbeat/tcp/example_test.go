package tcp_test

import (
	"context"
	"log"
	"net"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/tcp"
)

// A connection of the application's own.
func ExamplePing() {
	conn, err := net.Dial("tcp", "10.0.0.9:7000")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	heartbeat.New(heartbeat.Options{}).Add("feed", heartbeat.PingFunc(func(ctx context.Context) error {
		return tcp.Ping(ctx, conn.(*net.TCPConn))
	}))
}
