package beat

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"deadpeer/internal/holder"
)

// redisTarget pings by PING, in the protocol RESP 2 that every version speaks
// (redis.io/docs/latest/develop/reference/protocol-spec).
type redisTarget struct {
	address string
	tls     *tls.Config
	login   [][]string // commands of a new connection
	held    holder.Of[*redisConn]
}

// openRedis takes redis://[[USER]:PASSWORD@]HOST[:6379][/DATABASE], and
// rediss:// for TLS.
func openRedis(u *url.URL) (Target, func() error, error) {
	t := &redisTarget{address: hostPort(u, "6379")}
	if u.Scheme == "rediss" {
		t.tls = &tls.Config{ServerName: u.Hostname()}
	}
	if u.RawQuery != "" {
		return nil, nil, errors.New("redis takes no options")
	}
	if password, ok := u.User.Password(); ok {
		command := []string{"AUTH"}
		if name := u.User.Username(); name != "" {
			command = append(command, name)
		}
		t.login = append(t.login, append(command, password))
	}
	if database := strings.Trim(u.Path, "/"); database != "" {
		if _, err := strconv.ParseUint(database, 10, 31); err != nil {
			return nil, nil, errors.New("redis: the database is not a number")
		}
		t.login = append(t.login, []string{"SELECT", database})
	}
	return t, t.held.Close, nil
}

// Ping sends PING and waits for the answer.
func (t *redisTarget) Ping(ctx context.Context) error {
	c, ok := t.held.Get()
	if !ok {
		return errNotConnected
	}
	return c.do(ctx, "PING")
}

// Reconnect connects and logs in.
func (t *redisTarget) Reconnect(ctx context.Context) error { return t.held.Replace(ctx, t.connect) }

func (t *redisTarget) connect(ctx context.Context) (*redisConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	if t.tls != nil {
		conn = tls.Client(conn, t.tls) // its handshake comes with the first write
	}
	c := &redisConn{Conn: conn, reader: bufio.NewReaderSize(conn, mostReply)}
	for _, command := range append(t.login, []string{"PING"}) {
		if err := c.do(ctx, command...); err != nil {
			_ = conn.Close() // err tells why
			return nil, err
		}
	}
	return c, nil
}

// mostReply is the longest reply that is read.
const mostReply = 4096

// redisConn is used by one call at a time.
type redisConn struct {
	net.Conn
	reader *bufio.Reader
	owed   int // replies to commands whose deadline came first
}

// do sends a command that is answered with a line, and reads that. The answer
// to one whose deadline came first is waited for together with the next one's:
// a connection is not to be lost with one answer. Any other error but the
// server's own closes it.
func (c *redisConn) do(ctx context.Context, words ...string) error {
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.SetDeadline(time.Unix(1, 0))
		close(late)
	})
	line, err := c.exchange(words)
	if !stop() {
		<-late
		err = errors.Join(ctx.Err(), c.SetDeadline(time.Time{}))
	}
	if err != nil {
		return fmt.Errorf("redis %s: %w", words[0], err)
	}
	switch {
	case strings.HasPrefix(line, "+"):
		return nil
	case strings.HasPrefix(line, "-"):
		return fmt.Errorf("redis %s: %s", words[0], line[1:])
	}
	_ = c.Close()
	return fmt.Errorf("redis %s: answered with %q, which is not Redis's", words[0], line)
}

// exchange gives the reply as far as its line goes.
func (c *redisConn) exchange(words []string) (line string, err error) {
	request := fmt.Appendf(nil, "*%d\r\n", len(words))
	for _, w := range words {
		request = fmt.Appendf(request, "$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := c.Write(request); err != nil {
		_ = c.Close() // it may have a part of the command
		return "", err
	}
	var reply []byte
	for c.owed++; c.owed > 0; c.owed-- {
		reply, err = c.reader.ReadSlice('\n')
		if err == nil {
			continue
		}
		if len(reply) > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			_ = c.Close()
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			err = fmt.Errorf("reply is longer than %d bytes", mostReply)
		}
		return "", err
	}
	return strings.TrimRight(string(reply), "\r\n"), nil
}
