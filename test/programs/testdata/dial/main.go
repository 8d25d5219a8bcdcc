// Dial connects to ADDRESS without keepalive and says what the connection has
// then, what it has after the program's own setting, and with which error it
// ended: none sets nothing, weak switches keepalive off, strong asks for an
// earlier end.
//
// usage: dial none|weak|strong ADDRESS
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

func main() {
	c, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp4", os.Args[2])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	tcp := c.(*net.TCPConn)
	fmt.Println("port", tcp.LocalAddr().(*net.TCPAddr).Port)
	fmt.Println("given", options(tcp))
	switch os.Args[1] {
	case "weak":
		err = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Idle: time.Hour, Interval: time.Minute, Count: 9})
		err = errors.Join(err, tcp.SetKeepAlive(false))
	case "strong":
		err = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2})
	}
	fmt.Println("own", options(tcp), err)
	start := time.Now()
	_, err = io.Copy(io.Discard, tcp)
	if errors.Is(err, syscall.ETIMEDOUT) {
		err = syscall.ETIMEDOUT
	}
	fmt.Printf("ended %d ms %v\n", time.Since(start).Milliseconds(), err)
}

// options are SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT.
func options(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var list [4]int
	_ = raw.Control(func(fd uintptr) {
		for n, o := range [4][2]int{{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE}, {6, 4}, {6, 5}, {6, 6}} {
			v, getErr := syscall.GetsockoptInt(int(fd), o[0], o[1])
			list[n], err = v, errors.Join(err, getErr)
		}
	})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(list)
}
