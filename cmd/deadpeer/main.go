// Deadpeer finds the TCP connections whose peer is gone, proves it, and
// releases them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"deadpeer/internal/cli"
)

func main() {
	ends := []os.Signal{syscall.SIGTERM}
	// A terminal that hangs up must not leave sockets changed. nohup and the &
	// of a shell want these ignored.
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			ends = append(ends, s)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
