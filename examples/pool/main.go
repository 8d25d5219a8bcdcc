// Pool is a program with a database/sql pool that survives the death of its
// server: idle connections are pinged, dead ones leave the pool, and new ones
// are made as soon as there is somebody to connect to. It runs a query every
// two seconds and logs how long it took.
//
//	go run ./examples/pool postgres://user:password@localhost/postgres
//
// Kill the server, cut its cable or have the path forget the connections
// meanwhile, and watch.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/sqlbeat"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pool:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, the URL of a database, got %d", len(args))
	}
	config, err := pgx.ParseConfig(args[0])
	if err != nil {
		return err
	}
	// An idle connection is dead at most 5 s + 2 × 2 s before that is known.
	monitor := heartbeat.New(heartbeat.Options{Period: 5 * time.Second, Deadline: 2 * time.Second})
	if err := monitor.Start(ctx); err != nil {
		return err
	}
	defer func() { _ = monitor.Stop(context.Background()) }()
	db := sqlbeat.OpenDB(monitor, "db", stdlib.GetConnector(*config))
	defer func() { _ = db.Close() }()

	every := time.NewTicker(2 * time.Second)
	defer every.Stop()
	for {
		backend, took, err := query(ctx, db)
		if err != nil {
			slog.Error("query failed", "after", took, "error", err)
		} else {
			slog.Info("query answered", "after", took, "backend", backend)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

// query has a deadline: the connection it uses may die under it, which no
// heartbeat can help.
func query(ctx context.Context, db *sql.DB) (backend int, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	start := time.Now()
	err = db.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&backend)
	return backend, time.Since(start), err
}
