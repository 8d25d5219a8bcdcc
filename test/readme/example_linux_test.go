package readme

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"deadpeer/keepalive"
)

// dialAndListen stands in README.md, word for word.
func dialAndListen(ctx context.Context) error {
	policy := keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 6}

	// KeepAlive: -1 keeps package net from setting values of its own afterwards.
	listenConfig := net.ListenConfig{Control: policy.Control, KeepAlive: -1}
	listener, err := listenConfig.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()

	dialer := net.Dialer{Control: policy.Control, KeepAlive: -1}
	client, err := dialer.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer client.Close()

	server, err := listener.Accept() // has the listener's options
	if err != nil {
		return err
	}
	defer server.Close()
	for _, conn := range []net.Conn{client, server} {
		settings, err := keepalive.Get(conn.(*net.TCPConn))
		if err != nil {
			return err
		}
		fmt.Println(settings.KeepAlive, settings.Idle, settings.Interval, settings.Probes)
	}
	return nil
}

func Example() {
	if err := dialAndListen(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// true 1m0s 10s 6
	// true 1m0s 10s 6
}
