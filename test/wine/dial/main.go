// Dial connects, sets a keepalive policy as far as the system can, says what
// came of it, and waits for the end of the connection. It is the Windows
// program that the test beside it runs under Wine.
//
//	dial ADDRESS IDLE INTERVAL PROBES
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"deadpeer/keepalive"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dial:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: dial ADDRESS IDLE INTERVAL PROBES")
	}
	idle, err1 := time.ParseDuration(args[1])
	interval, err2 := time.ParseDuration(args[2])
	probes, err3 := strconv.Atoi(args[3])
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	d := net.Dialer{KeepAlive: -1}
	c, err := d.Dial("tcp4", args[0])
	if err != nil {
		return err
	}
	undone, err := keepalive.SetBestEffort(c.(*net.TCPConn), keepalive.Policy{Idle: idle, Interval: interval, Probes: probes, UserTimeout: -1})
	if err != nil {
		return err
	}
	for _, part := range undone {
		fmt.Println("undone", part)
	}
	fmt.Println("set")
	_, err = c.Read(make([]byte, 1))
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return fmt.Errorf("read: %w", err)
	}
	fmt.Println("ended", uint(errno))
	return nil
}
