package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// locks is a lock server on loopback that ends with the test.
func locks(t *testing.T) (addr netip.AddrPort, log *bytes.Buffer, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log = &bytes.Buffer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		s := &lockServer{log: log, holders: map[string]net.Conn{}}
		done <- s.serve(ctx, l)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().(*net.TCPAddr).AddrPort(), log, stop
}

func visit(t *testing.T, addr netip.AddrPort) *client {
	t.Helper()
	c, err := net.Dial("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{conn: c.(*net.TCPConn), in: bufio.NewReader(c)}
}

func TestLocks(t *testing.T) {
	addr, log, stop := locks(t)
	a, b := visit(t, addr), visit(t, addr)
	for _, tt := range []struct {
		client     *client
		line, want string
	}{
		{a, "UPDATE", "ERR no lock"},
		{a, "LOCK items:7", "OK"},
		{a, "LOCK items:7", "OK"},
		{a, "LOCK items:8", "ERR one lock per connection"},
		{a, "UPDATE", "OK"},
		{b, "LOCK items:7", "lock conflict on update"},
		{b, "UPDATE", "ERR no lock"},
		{b, "LOCK items:8\r", "OK"},
		{b, "", "ERR not a command"},
		{b, "lock items:8", "ERR not a command"},
		{b, "LOCK", "ERR not a name"},
		{b, "LOCK ", "ERR not a name"},
		{b, "LOCK items:7 items:8", "ERR not a name"},
		{b, "LOCK \x1b[31m\x00", "ERR not a name"},
		{b, "LOCK " + strings.Repeat("x", maxLine-len("LOCK \n")), "ERR one lock per connection"},
		{a, "QUIT", "BYE"},
	} {
		if err := tt.client.expect(t.Context(), tt.line, tt.want); err != nil {
			t.Error(err)
		}
	}
	if _, err := a.in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after QUIT: %v, want the end", err)
	}
	// The lock goes with the connection, if not in the same instant.
	c := visit(t, addr)
	for deadline := time.Now().Add(answerWithin); ; {
		answer, err := c.ask(t.Context(), "LOCK items:7")
		if err != nil {
			t.Fatal(err)
		}
		if answer == answerOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after its holder has gone: %q", answer)
		}
		time.Sleep(time.Millisecond)
	}
	stop()
	if want := ": closed by the client; items:7 is free\n"; !strings.Contains(log.String(), want) {
		t.Errorf("log %q, want %q", log, want)
	}
}

func TestLocksLongLine(t *testing.T) {
	addr, log, stop := locks(t)
	c := visit(t, addr)
	if err := c.expect(t.Context(), "LOCK items:7", answerOK); err != nil {
		t.Fatal(err)
	}
	if err := c.expect(t.Context(), strings.Repeat("x", maxLine), "ERR line too long"); err != nil {
		t.Fatal(err)
	}
	stop()
	if want := ": line too long; items:7 is free\n"; !strings.Contains(log.String(), want) {
		t.Errorf("log %q, want %q", log, want)
	}
}

func TestLocksManyClients(t *testing.T) {
	addr, _, _ := locks(t)
	for range maxClients {
		c := visit(t, addr)
		if err := c.expect(t.Context(), "UPDATE", "ERR no lock"); err != nil {
			t.Fatal(err)
		}
	}
	late := visit(t, addr)
	answer, err := late.in.ReadString('\n')
	if err != nil || answer != "ERR too many clients\n" {
		t.Errorf("one too many: %q, %v", answer, err)
	}
}

// stdin's end is the server's, as when the program that started it is killed.
func TestServeLocksEnds(t *testing.T) {
	stdin, parent := io.Pipe()
	said, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- ServeLocks(t.Context(), "127.0.0.1:0", stdin, stdout) }()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	where := strings.TrimPrefix(strings.TrimSpace(line), "listening on ")
	c := visit(t, netip.MustParseAddrPort(where))
	if err := c.expect(t.Context(), "UPDATE", "ERR no lock"); err != nil {
		t.Error(err)
	}
	_ = parent.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(answerWithin):
		t.Fatal("still serving")
	}
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("the client was not let go")
	}
}
