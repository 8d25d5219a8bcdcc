package zeo_test

import (
	"context"
	"crypto/tls"
	"log"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/zeo"
)

// A ZEO server that wants TLS.
func Example() {
	ctx := context.Background()
	client, err := zeo.Dial(ctx, "zeo.example.org:8100", zeo.Options{Storage: "main", TLS: &tls.Config{}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	info, err := client.Info(ctx)
	log.Printf("%q: %d bytes, %v", info.Name, info.Size, err)

	monitor := heartbeat.New(heartbeat.Options{}) // $ZEO_KEEPALIVE_PERIOD
	if err := monitor.Start(ctx); err != nil {
		log.Print(err)
		return
	}
	monitor.Add("zeo", client)
}
