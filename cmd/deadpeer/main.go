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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
