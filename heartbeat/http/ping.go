package http

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// pinger asks by PING frames, over a connection that carries nothing else:
// the clients of net/http and golang.org/x/net that are not deprecated send
// none when they are told to.
type pinger struct {
	net.Conn
	done chan struct{} // reading has ended
	err  error         // why, once done

	mu      sync.Mutex // guards what follows, and writing
	framer  *http2.Framer
	serial  uint64
	waiting map[uint64]chan struct{}
}

// newPinger begins the connection (RFC 9113 section 3.4). The server's
// SETTINGS are acknowledged when they come.
func newPinger(c net.Conn) (conn, error) {
	p := &pinger{Conn: c, done: make(chan struct{}), framer: http2.NewFramer(c, c), waiting: map[uint64]chan struct{}{}}
	p.framer.SetMaxReadFrameSize(16 << 10) // what we allow is the least there is
	err := p.write(time.Time{}, func() error {
		if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
			return err
		}
		return p.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	})
	if err != nil {
		return nil, err
	}
	go p.read()
	return p, nil
}

func (p *pinger) ask(ctx context.Context) error {
	answer := make(chan struct{})
	p.mu.Lock()
	p.serial++
	serial := p.serial
	p.waiting[serial] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, serial)
		p.mu.Unlock()
	}()
	deadline, _ := ctx.Deadline()
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], serial)
	if err := p.write(deadline, func() error { return p.framer.WritePing(false, data) }); err != nil {
		return err
	}
	select {
	case <-answer:
		return nil
	case <-p.done:
		return fmt.Errorf("wait for answer to PING: %w", p.err)
	case <-ctx.Done():
		return fmt.Errorf("wait for answer to PING: %w", ctx.Err())
	}
}

// write has write done by a deadline, or else closes the connection: after a
// part of a frame nothing can follow.
func (p *pinger) write(deadline time.Time, write func() error) error {
	if latest := time.Now().Add(10 * time.Second); deadline.IsZero() || deadline.After(latest) {
		deadline = latest
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.SetWriteDeadline(deadline)
	if err == nil {
		err = write()
	}
	if err != nil {
		_ = p.Conn.Close() // it is of no more use
		return fmt.Errorf("write HTTP/2 frame: %w", err)
	}
	return nil
}

func (p *pinger) read() {
	defer close(p.done)
	for p.err == nil {
		p.err = p.step()
	}
	_ = p.Conn.Close() // whatever ended it
}

func (p *pinger) step() error {
	frame, err := p.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return p.write(time.Time{}, p.framer.WriteSettingsAck)
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return p.write(time.Time{}, func() error { return p.framer.WritePing(true, f.Data) })
		}
		serial := binary.BigEndian.Uint64(f.Data[:])
		p.mu.Lock()
		defer p.mu.Unlock()
		if answer := p.waiting[serial]; answer != nil {
			close(answer)
			delete(p.waiting, serial)
		}
	case *http2.GoAwayFrame:
		return errors.New("server ends the connection")
	}
	return nil
}

// Close closes the connection, and waits for its reader.
func (p *pinger) Close() error {
	err := p.Conn.Close()
	<-p.done
	return err
}
