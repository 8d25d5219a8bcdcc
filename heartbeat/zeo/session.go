package zeo

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"deadpeer/internal/heard"
)

// keep is how much of a message is kept. Of a longer one the rest is read and
// dropped: what matters stands at the front.
const keep = 64 << 10

// mostName is more than the name of a protocol takes.
const mostName = 16

// session is one connection, with the goroutine that reads it.
type session struct {
	conn  net.Conn
	codec codec
	heard *heard.Clock // of anything but the answer to a call
	done  chan struct{}

	mu      sync.Mutex // guards what follows
	id      int64
	waiting map[int64]chan reply
	err     error // why it ended

	writing sync.Mutex
}

// codec is how messages are written: tuples of number, flag, method and
// arguments or value.
type codec interface {
	// call is a message that wants an answer. Arguments are string or bool,
	// three at most.
	call(id int64, method string, args ...any) []byte
	// head reads the first three parts. The rest may be missing.
	head(message []byte) (head, error)
	// tuple reads all of a message.
	tuple(message []byte) ([]any, error)
}

// head is what stands in front of a message.
type head struct {
	id     int64
	hasID  bool // the server's answers to loads have tuples instead
	flag   int64
	method string
}

// reply is an answer to a call.
type reply struct {
	flag    int64 // 0 a result, 2 an exception
	message []byte
	cut     bool
	codec   codec
}

// value is what was answered.
func (r reply) value() (any, error) {
	if r.cut {
		return nil, fmt.Errorf("answer is longer than %d bytes", keep)
	}
	parts, err := r.codec.tuple(r.message)
	if err != nil {
		return nil, err
	}
	if len(parts) != 4 {
		return nil, fmt.Errorf("message has %d parts, want 4", len(parts))
	}
	return parts[3], nil
}

func (r reply) err() error {
	switch r.flag {
	case 0:
		return nil
	case 2:
		value, err := r.value()
		if err != nil {
			return fmt.Errorf("read the server's exception: %w", err)
		}
		e := &ServerError{Text: fmt.Sprint(value)}
		if pair, ok := value.([]any); ok && len(pair) == 2 {
			e.Class, e.Text = fmt.Sprint(pair[0]), fmt.Sprint(pair[1])
		}
		return e
	}
	return fmt.Errorf("reply has the flag %d, known are 0 and 2", r.flag)
}

// handshake takes part in the exchange of protocol names, in which the server
// speaks first and the client repeats.
func handshake(ctx context.Context, conn net.Conn) (*session, error) {
	// A deadline in the past ends reads and writes.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r := bufio.NewReader(conn)
	// Of a server that speaks something else the "length" may be gigabytes.
	if size, err := r.Peek(4); err == nil && binary.BigEndian.Uint32(size) > mostName {
		return nil, fmt.Errorf("server is none of ZEO: it begins with %q", size)
	}
	name, _, err := readFrame(r, mostName)
	if err != nil {
		return nil, fmt.Errorf("read the server's protocol: %w", cause(ctx, err))
	}
	var c codec
	switch string(name) {
	case "Z5":
		c = pickle{}
	case "M5":
		c = msgpack{}
	default:
		return nil, fmt.Errorf("server speaks the protocol %q, known are Z5 and M5 of ZEO 5", name)
	}
	if _, err := conn.Write(frame(name)); err != nil {
		return nil, fmt.Errorf("answer with the protocol: %w", cause(ctx, err))
	}
	if !stop() {
		return nil, ctx.Err() // the deadline may be in the past
	}
	s := &session{conn: conn, codec: c, heard: heard.New(), done: make(chan struct{}), waiting: map[int64]chan reply{}}
	go s.read(r)
	return s, nil
}

// cause is ctx's error when that is why an operation ended.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// call calls a method of the server and waits for its reply.
func (s *session) call(ctx context.Context, method string, args ...any) (reply, error) {
	answer := make(chan reply, 1)
	s.mu.Lock()
	if s.id++; s.id > 1<<30 {
		s.id = 1
	}
	id := s.id
	s.waiting[id] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
	}()
	if err := s.write(ctx, frame(s.codec.call(id, method, args...))); err != nil {
		return reply{}, fmt.Errorf("send %s: %w", method, s.why(err))
	}
	select {
	case r := <-answer:
		return r, r.err()
	case <-s.done:
		select {
		case r := <-answer: // the last thing that was said
			return r, r.err()
		default:
		}
		return reply{}, fmt.Errorf("wait for answer to %s: %w", method, s.why(net.ErrClosed))
	case <-ctx.Done():
		return reply{}, fmt.Errorf("wait for answer to %s: %w", method, ctx.Err())
	}
}

// write writes a whole message, or ends the session: of a part the server
// would make nothing.
func (s *session) write(ctx context.Context, message []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := s.conn.Write(message)
	if err != nil {
		s.end(err)
	}
	return err
}

// read hands out the replies, until the connection ends.
func (s *session) read(r *bufio.Reader) {
	defer close(s.done)
	for {
		message, cut, err := readFrame(r, keep)
		if err != nil {
			s.end(err)
			return
		}
		h, err := s.codec.head(message)
		if err != nil {
			s.end(fmt.Errorf("read message: %w", err))
			return
		}
		if waiting := s.waitingFor(h); waiting != nil {
			waiting <- reply{h.flag, message, cut, s.codec}
		} else { // the server's own news, or an answer that came too late
			s.heard.Note()
		}
	}
}

// waitingFor is the call that a message answers, nil for none.
func (s *session) waitingFor(h head) chan reply {
	if h.method != ".reply" || !h.hasID {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.waiting[h.id]
	delete(s.waiting, h.id)
	return waiting
}

// end notes why the session ends, and ends it.
func (s *session) end(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("server closed the connection")
	}
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	_ = s.conn.Close() // nothing more to say to it
}

// why is what ended the session, which comes before err.
func (s *session) why(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return err
}

// Close ends the session, and waits for its reader.
func (s *session) Close() error {
	s.end(net.ErrClosed)
	<-s.done
	return nil
}

// frame puts the length in front.
func frame(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

// readFrame reads a message and keeps its first bytes, at most so many.
func readFrame(r *bufio.Reader, most int) (message []byte, cut bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, err
	}
	size := int64(binary.BigEndian.Uint32(head[:]))
	message = make([]byte, min(size, int64(most)))
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, false, err
	}
	rest := size - int64(len(message))
	_, err = io.CopyN(io.Discard, r, rest)
	return message, rest > 0, err
}
