package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the lock server: it listens to strangers like any other.
const (
	maxLine     = 128 // bytes, the line end included
	maxClients  = 256
	writeWithin = 5 * time.Second // for clients that do not read
)

// ServeLocks is the process of the lock server: it listens on addr, says on
// stdout where, and serves until ctx is done or stdin ends, which it does
// when the process that started it is gone. The goroutine that reads stdin
// lasts as long as stdin does.
//
// A client speaks in lines. "LOCK name" answers "OK" or "lock conflict on
// update", "UPDATE" answers "OK" to whoever holds a lock, "QUIT" ends. A
// connection holds one lock, and loses it only by ending; the server never
// looks whether a silent client is there. Like many a real one.
func ServeLocks(ctx context.Context, addr string, stdin io.Reader, stdout io.Writer) error {
	// The process's name is that of its main thread, whichever thread writes
	// here (proc_pid_comm(5)). It is for listings only.
	_ = os.WriteFile("/proc/self/comm", []byte("lockserver"), 0)

	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serve locks: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, stdin) // any end of it is an end
		cancel()
	}()
	if _, err := fmt.Fprintf(stdout, "listening on %s\n", l.Addr()); err != nil {
		return errors.Join(fmt.Errorf("serve locks: %w", err), l.Close())
	}
	s := &lockServer{log: stdout, holders: map[string]net.Conn{}}
	return s.serve(ctx, l)
}

type lockServer struct {
	log io.Writer // a line for each lock let go, written under mu

	mu      sync.Mutex
	holders map[string]net.Conn
}

// serve answers clients until ctx is done, and closes l and all connections.
func (s *lockServer) serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	seats := make(chan struct{}, maxClients)
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED):
			time.Sleep(10 * time.Millisecond)
			continue
		case err != nil:
			return errors.Join(fmt.Errorf("serve locks: %w", err), l.Close())
		}
		select {
		case seats <- struct{}{}:
		default:
			_ = say(c, "ERR too many clients")
			_ = c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-seats }()
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			s.client(c)
		})
	}
}

// client serves one connection until it ends, then lets its lock go.
func (s *lockServer) client(c net.Conn) {
	defer func() { _ = c.Close() }()
	var held string
	err := s.talk(c, &held)
	if held == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holders, held)
	_, _ = fmt.Fprintf(s.log, "%s: %s; %s is free\n", c.RemoteAddr(), cause(err), held)
}

func (s *lockServer) talk(c net.Conn, held *string) error {
	in := bufio.NewReaderSize(c, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return errors.Join(errors.New("line too long"), say(c, "ERR line too long"))
		}
		if err != nil {
			return err
		}
		answer := s.answer(c, string(line), held)
		if err := say(c, answer); err != nil || answer == answerBye {
			return err
		}
	}
}

func (s *lockServer) answer(c net.Conn, line string, held *string) string {
	command, name, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	switch {
	case command == "LOCK" && name != "" && strings.Trim(name, nameBytes) == "":
		return s.lock(c, name, held)
	case command == "LOCK":
		return "ERR not a name"
	case command == "UPDATE" && *held == "":
		return "ERR no lock"
	case command == "UPDATE":
		return answerOK
	case command == "QUIT":
		return answerBye
	}
	return "ERR not a command"
}

// nameBytes are what the name of a lock is made of.
const nameBytes = "abcdefghijklmnopqrstuvwxyz0123456789:_"

func (s *lockServer) lock(c net.Conn, name string, held *string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch holder := s.holders[name]; {
	case holder != nil && holder != c:
		return answerConflict
	case *held != "" && *held != name:
		return "ERR one lock per connection"
	}
	s.holders[name], *held = c, name
	return answerOK
}

func say(c net.Conn, answer string) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return err
	}
	_, err := io.WriteString(c, answer+"\n")
	return err
}

// cause is the system's word for the end of a connection.
func cause(err error) string {
	var errno unix.Errno
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return "closed by the client"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}
