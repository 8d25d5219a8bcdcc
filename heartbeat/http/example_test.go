package http_test

import (
	"context"
	"log"
	"os"
	"os/signal"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/http"
)

// A server behind a load balancer is watched until the program is interrupted.
// What happens goes to the log.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	target, err := http.New("https://shop.example.org/health", http.Options{})
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
