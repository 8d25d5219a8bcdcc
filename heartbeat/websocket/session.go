package websocket

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/coder/websocket"

	"deadpeer/internal/heard"
)

// session is one connection, with the goroutine that reads it.
type session struct {
	conn   *websocket.Conn
	cancel context.CancelFunc // of reading
	done   chan struct{}      // reading has ended
	err    error              // why, once done
	heard  *heard.Clock       // of anything but pongs
}

func (t *Target) connect(ctx context.Context) (*session, error) {
	s := &session{done: make(chan struct{}), heard: heard.New()}
	transport := &http.Transport{DialContext: t.opts.Dial, TLSClientConfig: t.opts.TLS.Clone(), DisableKeepAlives: true}
	client := &http.Client{
		Transport: transport,
		// The header is for this server only.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	conn, _, err := websocket.Dial(ctx, t.url.String(), &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: t.opts.Header, Subprotocols: t.opts.Subprotocols,
		Host:           t.opts.Header.Get("Host"), // net/http leaves out the header
		OnPingReceived: func(context.Context, []byte) bool { s.heard.Note(); return true },
	})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(-1) // what is dropped needs no memory
	s.conn = conn
	read, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.read(read)
	return s, nil
}

// read drops the server's messages. The library sees to pongs while it reads.
func (s *session) read(ctx context.Context) {
	defer close(s.done)
	for {
		_, message, err := s.conn.Reader(ctx)
		if err == nil {
			s.heard.Note()
			_, err = io.Copy(io.Discard, message)
		}
		if err != nil {
			if code := websocket.CloseStatus(err); code >= 0 {
				err = fmt.Errorf("server closed the connection with status %d", code)
			}
			s.err = err
			return
		}
		s.heard.Note()
	}
}

func (s *session) ping(ctx context.Context) error {
	err := s.conn.Ping(ctx)
	if err == nil {
		return nil
	}
	select { // but for ctx nothing fails on a connection that has not ended
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return err
	}
}

// Close closes the connection without a closing handshake, for which a dead
// peer would have to be waited.
func (s *session) Close() error {
	s.cancel()
	_ = s.conn.CloseNow() // it may be closed
	<-s.done
	return nil
}
