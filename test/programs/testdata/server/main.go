// Server answers what it reads, without keepalive, and says with which error
// its connection ended.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

func main() {
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", "0.0.0.0:"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, err := io.Copy(c, c)
			if errors.Is(err, syscall.ETIMEDOUT) {
				fmt.Println("ended ETIMEDOUT")
			} else {
				fmt.Println("ended", err)
			}
		}()
	}
}
