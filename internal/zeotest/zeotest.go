// Package zeotest is a ZEO server for tests: it speaks enough of the protocols
// Z5 and M5 to be registered with and pinged, and behaves as ZEO 6 was seen to
// behave. It knows one storage, "1", and keeps nothing. Any OS.
package zeotest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Server serves connections until Close.
type Server struct {
	listener net.Listener
	msgpack  bool
	done     sync.WaitGroup
	silent   atomic.Bool

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

// Serve serves what comes to l, with msgpack or pickle. The server owns l.
func Serve(l net.Listener, msgpack bool) *Server {
	s := &Server{listener: l, msgpack: msgpack, conns: map[net.Conn]struct{}{}}
	s.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			if s.closed {
				s.mu.Unlock()
				_ = c.Close()
				return
			}
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.done.Go(func() {
				s.serve(c)
				_ = c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			})
		}
	})
	return s
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Hang has the server answer no more, its connections staying open: a program
// that hangs on a kernel that does not.
func (s *Server) Hang() { s.silent.Store(true) }

// Tell sends what a commit by somebody else sends: a message nobody asked for.
func (s *Server) Tell() {
	message := []byte("\x80\x03(K\x00\x88X\x15\x00\x00\x00invalidateTransactionC\x08\x04\x0d(f\xa6b\x84\x11]C\x08\x00\x00\x00\x00\x00\x00\x00\x00a\x86t.")
	if s.msgpack {
		message = []byte("\x94\x00\xc3\xb5invalidateTransaction\x92\xc4\x08\x04\x0d(f\xa6b\x84\x11\x91\xc4\x08\x00\x00\x00\x00\x00\x00\x00\x00")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_, _ = c.Write(frame(message)) // the connection may be ending
	}
}

// Close ends the server and its connections.
func (s *Server) Close() {
	_ = s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

// serve ends without an answer where the real server does: at an unknown
// protocol, and at a call before register.
func (s *Server) serve(c net.Conn) {
	own := []byte("Z5")
	if s.msgpack {
		own = []byte("M5")
	}
	r := bufio.NewReader(c)
	if _, err := c.Write(frame(own)); err != nil {
		return
	}
	protocol, err := readFrame(r)
	if err != nil || string(protocol) != "Z5" && string(protocol) != "M5" {
		return
	}
	msgpack := string(protocol) == "M5" // the server follows the client
	registered := false
	for {
		message, err := readFrame(r)
		if err != nil {
			return
		}
		id, ok := idOf(message, msgpack)
		var answer []byte
		switch {
		case !ok:
			return
		case bytes.Contains(message, []byte("register")):
			name := []byte("X\x01\x00\x00\x001")
			if msgpack {
				name = []byte("\xa11")
			}
			if registered = bytes.Contains(message, name); registered {
				answer = result(id, msgpack, "C\x08\x04\x0d(f\xa6b\x84\x11", "\xc4\x08\x04\x0d(f\xa6b\x84\x11")
			} else {
				answer = exception(id, msgpack, "builtins.ValueError", "unknown storage")
			}
		case !registered:
			return
		case bytes.Contains(message, []byte("get_info")):
			answer = result(id, msgpack,
				"}(X\x06\x00\x00\x00lengthK\x01X\x04\x00\x00\x00sizeM\x62\x02X\x04\x00\x00\x00nameX\x08\x00\x00\x00/Data.fsu",
				"\x83\xa6length\x01\xa4size\xcd\x02\x62\xa4name\xa8/Data.fs")
		case bytes.Contains(message, []byte("ping")):
			answer = result(id, msgpack, "N", "\xc0")
		default:
			continue // one-way
		}
		if s.silent.Load() {
			continue
		}
		if _, err := c.Write(frame(answer)); err != nil {
			return
		}
	}
}

// idOf reads the number of a call.
func idOf(message []byte, msgpack bool) (id []byte, ok bool) {
	if msgpack {
		if len(message) < 6 || message[0] != 0x94 {
			return nil, false
		}
		if message[1] == 0xce {
			return message[1:6], true
		}
		return message[1:2], true
	}
	if len(message) < 8 || !bytes.HasPrefix(message, []byte("\x80\x03(")) {
		return nil, false
	}
	size := map[byte]int{'K': 2, 'M': 3, 'J': 5}[message[3]]
	return message[3 : 3+size], size > 0
}

// result is a reply with the value in either protocol.
func result(id []byte, msgpack bool, pickled, packed string) []byte {
	return reply(id, 0, msgpack, pickled, packed)
}

func exception(id []byte, msgpack bool, class, text string) []byte {
	pickled := "X" + size4(class) + class + "X" + size4(text) + text + "\x85\x86"
	packed := "\x92\xd9" + string([]byte{byte(len(class))}) + class + "\x91\xd9" + string([]byte{byte(len(text))}) + text
	return reply(id, 2, msgpack, pickled, packed)
}

func reply(id []byte, flag byte, msgpack bool, pickled, packed string) []byte {
	if msgpack {
		return append(append([]byte{0x94}, id...), string([]byte{flag})+"\xa6.reply"+packed...)
	}
	return append(append([]byte("\x80\x03("), id...), "K"+string([]byte{flag})+"X\x06\x00\x00\x00.reply"+pickled+"t."...)
}

func size4(s string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(s))))
}

func frame(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	message := make([]byte, min(binary.BigEndian.Uint32(head[:]), 1<<20))
	_, err := io.ReadFull(r, message)
	return message, err
}
