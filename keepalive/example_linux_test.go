package keepalive_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"deadpeer/keepalive"
)

// Dialing: the policy is on the socket before the SYN goes out.
func ExamplePolicy_Control_dial() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	p := keepalive.Policy{Idle: 60 * time.Second, Interval: 10 * time.Second, Probes: 6}
	d := net.Dialer{Control: p.Control, KeepAlive: -1}
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	s, err := keepalive.Get(c.(*net.TCPConn))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.KeepAlive, s.Idle, s.Interval, s.Probes)
	// Output: true 1m0s 10s 6
}

// Accepting: set on the listener, or, as here, on each connection.
func ExampleSet() {
	lc := net.ListenConfig{KeepAlive: -1}
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	accepted, err := l.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer accepted.Close()
	p := keepalive.Policy{Idle: 30 * time.Second, Interval: 5 * time.Second, Probes: 4}
	if err := keepalive.Set(accepted.(*net.TCPConn), p); err != nil {
		log.Fatal(err)
	}
	s, err := keepalive.Get(accepted.(*net.TCPConn))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.KeepAlive, s.Idle, s.Interval, s.Probes)
	// Output: true 30s 5s 4
}
