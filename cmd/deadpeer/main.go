// Deadpeer finds the TCP connections whose peer is gone, proves it, and
// releases them.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"deadpeer/internal/cli"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// Tables of connections hold no pointers: collecting costs next to
		// nothing, and memory may be what the host is short of.
		debug.SetGCPercent(25)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
