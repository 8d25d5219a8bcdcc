package grpc_test

import (
	"context"
	"crypto/tls"
	"log"
	"os"
	"os/signal"
	"time"

	"deadpeer/heartbeat"
	beat "deadpeer/heartbeat/grpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// A server is watched until the program is interrupted. What happens goes to
// the log.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	target, err := beat.New("shop.example.org:443", beat.Options{
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{}))},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer target.Close()

	monitor := heartbeat.New(heartbeat.Options{Period: 30 * time.Second, Deadline: 5 * time.Second})
	if err := monitor.Start(ctx); err != nil {
		log.Fatal(err)
	}
	monitor.Add("shop", target)
	<-ctx.Done()
	if err := monitor.Stop(context.Background()); err != nil {
		log.Print(err)
	}
}
