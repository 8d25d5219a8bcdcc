package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"deadpeer/internal/testnet"
)

// answerWithin bounds what takes well under a millisecond when all is well.
const answerWithin = 5 * time.Second

// client is a client of the lock server.
type client struct {
	conn *net.TCPConn
	in   *bufio.Reader
}

func dial(ctx context.Context, from *testnet.Host, server netip.AddrPort) (*client, error) {
	c, err := from.Dial(ctx, "tcp4", server.String())
	if err != nil {
		return nil, err
	}
	// Its close then sends RST and leaves nothing in the namespace that waits
	// for an answer and keeps it there.
	if err := c.SetLinger(0); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &client{conn: c, in: bufio.NewReader(c)}, nil
}

func (c *client) address() netip.AddrPort { return c.conn.LocalAddr().(*net.TCPAddr).AddrPort() }

// ask says a line and gives the answer.
func (c *client) ask(ctx context.Context, line string) (string, error) {
	if err := c.conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return "", fmt.Errorf("say %s: %w", line, err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(c.conn, "%s\n", line); err != nil {
		return "", fmt.Errorf("say %s: %w", line, err)
	}
	answer, err := c.in.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("say %s: %w", line, err)
	}
	return answer[:len(answer)-1], nil
}

// expect is ask for one certain answer.
func (c *client) expect(ctx context.Context, line, want string) error {
	got, err := c.ask(ctx, line)
	if err == nil && got != want {
		err = fmt.Errorf("say %s: the lock server answered %q, not %q", line, got, want)
	}
	return err
}
