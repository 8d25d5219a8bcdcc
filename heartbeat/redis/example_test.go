package redis_test

import (
	"context"
	"log"
	"os"
	"os/signal"
	"time"

	"deadpeer/heartbeat"
	beat "deadpeer/heartbeat/redis"

	"github.com/redis/go-redis/v9"
)

// A client's idle connections are pinged until the program is interrupted. What
// happens goes to the log.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	client := redis.NewClient(&redis.Options{
		Addr: "10.0.0.9:6379", Password: os.Getenv("REDIS_PASSWORD"), ContextTimeoutEnabled: true,
	})
	defer client.Close()

	monitor := heartbeat.New(heartbeat.Options{Period: 30 * time.Second, Deadline: 5 * time.Second})
	if err := monitor.Start(ctx); err != nil {
		log.Fatal(err)
	}
	monitor.Add("cache", beat.New(client))
	<-ctx.Done()
	if err := monitor.Stop(context.Background()); err != nil {
		log.Print(err)
	}
}
