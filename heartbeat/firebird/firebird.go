// Package firebird pings Firebird servers over a connection that is held for
// it alone.
//
//	target, err := firebird.New("sysdba:masterkey@10.0.0.9:3050/employee")
//	monitor.Add("employee", target)
//
// For the pool of an application there is package sqlbeat, which takes a [Connector].
//
// A ping is op_info_database: one small request, one answer, on the attached
// connection, with any version of the server. op_ping, which newer ones know,
// is one request and one answer, too, and saves nothing.
//
// op_dummy is no ping. A server sends it to its clients every
// DummyPacketInterval seconds (firebird.conf); only their TCP acknowledges it.
// A client that is gone shows by its retransmissions, as late as tcp_retries2
// says, and until then TCP keepalive is silent, since data is in flight: a
// short keepalive has no effect beside it. Leave DummyPacketInterval at 0 and
// use keepalive.
//
// Works wherever github.com/nakagami/firebirdsql does, with no privileges.
package firebird

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	_ "github.com/nakagami/firebirdsql" // registers the driver

	"deadpeer/heartbeat/sqlbeat"
)

// New makes a target that is not connected: its first pings fail, so that a
// monitor has it reconnect. The data source name is that of firebirdsql:
// user:password@host:port/database?option=value. What is wrong with it shows
// when it connects.
func New(dsn string) (*sqlbeat.Single, error) {
	c, err := Connector(dsn)
	if err != nil {
		return nil, err
	}
	return sqlbeat.NewSingle(c), nil
}

// Connector is the driver's, for sqlbeat.OpenDB. firebirdsql exports neither
// its connector nor its driver. What is wrong with the data source name shows
// when it connects.
func Connector(dsn string) (driver.Connector, error) {
	db, err := sql.Open("firebirdsql", dsn)
	if err != nil {
		return nil, fmt.Errorf("open Firebird driver: %w", err)
	}
	d, ok := db.Driver().(driver.DriverContext)
	if err := db.Close(); err != nil {
		return nil, fmt.Errorf("open Firebird driver: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("open Firebird driver: it makes no connectors: %w", errors.ErrUnsupported)
	}
	c, err := d.OpenConnector(dsn)
	if err != nil {
		return nil, fmt.Errorf("read Firebird data source name: %w", err)
	}
	return c, nil
}
