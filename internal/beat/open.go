package beat

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/url"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"deadpeer/heartbeat/firebird"
	"deadpeer/heartbeat/http"
	"deadpeer/heartbeat/sqlbeat"
	"deadpeer/heartbeat/tcp"
	"deadpeer/heartbeat/websocket"
	"deadpeer/heartbeat/zeo"
)

// errNotConnected is the error of a target that has no connection at present.
var errNotConnected = errors.New("not connected")

// openZEO takes zeo://HOST[:8100]/STORAGE[?tls=true].
func openZEO(u *url.URL) (Target, func() error, error) {
	opts := zeo.Options{Storage: strings.TrimPrefix(u.Path, "/")}
	switch u.Query().Get("tls") {
	case "", "false":
	case "true":
		opts.TLS = &tls.Config{}
	default:
		return nil, nil, errors.New("tls is neither true nor false")
	}
	c := zeo.New(hostPort(u, "8100"), opts)
	return c, c.Close, nil
}

// openFirebird takes firebird://USER:PASSWORD@HOST[:3050]/DATABASE.
func openFirebird(u *url.URL) (Target, func() error, error) {
	if u.User == nil {
		return nil, nil, errors.New("no user; want firebird://USER:PASSWORD@HOST/DATABASE")
	}
	dsn := *u
	dsn.Scheme, dsn.Host = "", hostPort(u, "3050")
	c, err := firebird.New(strings.TrimPrefix(dsn.String(), "//"))
	if err != nil {
		return nil, nil, err
	}
	return c, c.Close, nil
}

// openPostgres takes what libpq does.
func openPostgres(u *url.URL) (Target, func() error, error) {
	config, err := pgx.ParseConfig(u.String())
	if err != nil {
		return nil, nil, err
	}
	c := sqlbeat.NewSingle(stdlib.GetConnector(*config))
	return c, c.Close, nil
}

// openMySQL takes mysql://USER:PASSWORD@HOST[:3306]/DATABASE?OPTION=VALUE, the
// options being those of go-sql-driver/mysql.
func openMySQL(u *url.URL) (Target, func() error, error) {
	config := mysql.NewConfig()
	if u.RawQuery != "" {
		var err error
		if config, err = mysql.ParseDSN("/?" + u.RawQuery); err != nil {
			return nil, nil, err
		}
	}
	config.Net, config.Addr, config.DBName = "tcp", hostPort(u, "3306"), strings.TrimPrefix(u.Path, "/")
	if u.User != nil {
		config.User = u.User.Username()
		config.Passwd, _ = u.User.Password()
	}
	config.Logger = log.New(io.Discard, "", 0) // the errors are returned, too
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return nil, nil, err
	}
	c := sqlbeat.NewSingle(connector)
	return c, c.Close, nil
}

func openHTTP(u *url.URL) (Target, func() error, error) {
	c, err := http.New(u.String(), http.Options{})
	if err != nil {
		return nil, nil, err
	}
	return c, c.Close, nil
}

func openWebSocket(u *url.URL) (Target, func() error, error) {
	c, err := websocket.New(u.String(), websocket.Options{})
	if err != nil {
		return nil, nil, err
	}
	return c, c.Close, nil
}

// openTCP takes tcp://HOST:PORT.
func openTCP(u *url.URL) (Target, func() error, error) {
	if u.Port() == "" {
		return nil, nil, errors.New("no port; want tcp://HOST:PORT")
	}
	c := tcp.New(u.Host, nil)
	return c, c.Close, nil
}
