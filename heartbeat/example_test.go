package heartbeat_test

import (
	"context"
	"log"
	"time"

	"deadpeer/heartbeat"
)

// A monitor for the length of a program.
func Example() {
	ctx := context.Background()
	monitor := heartbeat.New(heartbeat.Options{Period: 30 * time.Second})
	if err := monitor.Start(ctx); err != nil {
		log.Fatal(err)
	}
	handle := monitor.Add("orders", heartbeat.PingFunc(func(context.Context) error {
		return nil // say something to the peer, and wait for its answer
	}))
	log.Println(handle.State(), handle.Latency().Quantile(0.99))
	handle.Remove()
	if err := monitor.Stop(ctx); err != nil {
		log.Print(err)
	}
}
