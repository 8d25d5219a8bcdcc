package sqlbeat_test

import (
	"context"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/sqlbeat"
)

// A pool whose idle connections are pinged.
func ExampleOpenDB() {
	monitor := heartbeat.New(heartbeat.Options{Period: 30 * time.Second})
	if err := monitor.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	config, err := pgx.ParseConfig("postgres://app@10.0.0.5/orders")
	if err != nil {
		log.Fatal(err)
	}
	db := sqlbeat.OpenDB(monitor, "orders", stdlib.GetConnector(*config))
	_, err = db.Exec("SELECT 1") // as ever
	log.Print(err)
}
