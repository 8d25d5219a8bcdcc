// Package load is an application under load: clients that talk to a server
// over loopback, all in this process. Every byte is accounted for. Tests and
// benchmarks run it while something is done to its sockets, and see whether it
// notices. Any OS; needs nothing.
package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how much is asked. The server answers each request with the same
// bytes.
type Options struct {
	Lasting int // clients that keep their connection
	Fresh   int // clients that make a new one every few requests
	Rate    int // requests a second of all clients; 0 for as many as there can be
}

// Report is what clients met.
type Report struct {
	Requests    int
	Connections int // that were made
	Took        time.Duration
	Median, P99 time.Duration // from a request to the last byte of its answer
}

const (
	size     = 512              // bytes of a request
	perFresh = 10               // requests on a connection of a Fresh client
	patience = 10 * time.Second // with an answer
)

// Run goes on until ctx is done. A request that is not answered with its own
// bytes within 10 seconds is an error, and so is any other error of a socket,
// at either end.
func Run(ctx context.Context, o Options) (Report, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return Report{}, fmt.Errorf("load: %w", err)
	}
	s := &server{listener: l}
	served := make(chan error, 1)
	go func() { served <- s.serve() }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	clients := make([]client, o.Lasting+o.Fresh)
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	start := time.Now()
	for i := range clients {
		c := &clients[i]
		c.to, c.number, c.fresh = l.Addr().String(), uint32(i), i >= o.Lasting
		if o.Rate > 0 {
			c.every = time.Second * time.Duration(len(clients)) / time.Duration(o.Rate)
		}
		wg.Go(func() {
			if errs[i] = c.run(ctx); errs[i] != nil {
				stop()
			}
		})
	}
	wg.Wait()
	r := Report{Took: time.Since(start)}
	errs = append(errs, l.Close(), <-served)
	var took []time.Duration
	for i := range clients {
		took = append(took, clients[i].took...)
		r.Connections += clients[i].connections
	}
	if r.Requests = len(took); r.Requests > 0 {
		slices.Sort(took)
		r.Median, r.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	if err := errors.Join(errs...); err != nil {
		return r, fmt.Errorf("load: %w", err)
	}
	if got, want := s.received.Load(), int64(r.Requests)*size; got != want {
		return r, fmt.Errorf("load: the server received %d bytes, not %d", got, want)
	}
	return r, nil
}

// server answers every connection with what it reads.
type server struct {
	listener net.Listener
	received atomic.Int64
}

// serve ends when the listener is closed and the clients have gone.
func (s *server) serve() error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for {
		c, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			wg.Wait()
			return errors.Join(append(errs, err)...)
		}
		wg.Go(func() {
			if err := errors.Join(s.answer(c), c.Close()); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("server: %w", err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *server) answer(c net.Conn) error {
	b := make([]byte, size)
	for {
		n, err := c.Read(b)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.received.Add(int64(n))
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
	}
}

type client struct {
	to          string
	number      uint32
	fresh       bool
	every       time.Duration
	took        []time.Duration
	connections int
}

func (c *client) run(ctx context.Context) error {
	for ctx.Err() == nil {
		// ctx ends no request half-way.
		conn, err := net.DialTimeout("tcp4", c.to, patience)
		if err != nil {
			return fmt.Errorf("client: %w", err)
		}
		c.connections++
		if err := errors.Join(c.talk(ctx, conn), conn.Close()); err != nil {
			return fmt.Errorf("client, after %d requests: %w", len(c.took), err)
		}
	}
	return nil
}

func (c *client) talk(ctx context.Context, conn net.Conn) error {
	request, answer := make([]byte, size), make([]byte, size)
	next := time.Now()
	for n := 0; ctx.Err() == nil && (!c.fresh || n < perFresh); n++ {
		if c.every > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Until(next)):
			}
			next = next.Add(c.every)
		}
		for i := 0; i < size; i += 8 { // no two requests are alike, nor two parts of one
			binary.NativeEndian.PutUint64(request[i:], uint64(c.number)<<40+uint64(len(c.took))<<8+uint64(i/8))
		}
		start := time.Now()
		if err := conn.SetDeadline(start.Add(patience)); err != nil {
			return err
		}
		if _, err := conn.Write(request); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, answer); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		c.took = append(c.took, time.Since(start))
		if !bytes.Equal(request, answer) {
			return errors.New("the answer is not the request")
		}
	}
	return nil
}
