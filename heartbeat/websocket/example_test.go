package websocket_test

import (
	"context"
	"log"
	"os"
	"os/signal"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/websocket"
)

// A server is watched until the program is interrupted. What happens goes to
// the log.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	target, err := websocket.New("wss://shop.example.org/events", websocket.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer target.Close()

	monitor := heartbeat.New(heartbeat.Options{Period: 30 * time.Second, Deadline: 5 * time.Second})
	if err := monitor.Start(ctx); err != nil {
		log.Fatal(err)
	}
	monitor.Add("events", target)
	<-ctx.Done()
	if err := monitor.Stop(context.Background()); err != nil {
		log.Print(err)
	}
}
