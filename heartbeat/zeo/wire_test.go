package zeo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
)

// line is one message of a recorded session, from the server or to it.
type line struct {
	toServer bool
	message  []byte
}

// sessions are those recorded from a real server, by number.
func sessions(t testing.TB) map[int][]line {
	t.Helper()
	text, err := os.ReadFile("testdata/sessions.hex")
	if err != nil {
		t.Fatal(err)
	}
	all, n := map[int][]line{}, 0
	for l := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(l, "# session"):
			n++
		case l[0] == '<', l[0] == '>':
			b, err := hex.DecodeString(strings.TrimSpace(l[1:]))
			if err != nil || len(b) < 4 {
				t.Fatalf("session %d: %v", n, err)
			}
			all[n] = append(all[n], line{l[0] == '>', b[4:]})
		}
	}
	if n != 13 {
		t.Fatalf("%d sessions, want 13", n)
	}
	return all
}

// conversation is a recorded session up to and with the answer to get_info.
func conversation(t testing.TB, session []line) []line {
	t.Helper()
	for i, l := range session {
		if i > 0 && l.toServer && bytes.Contains(l.message, []byte("get_info")) {
			return session[:i+2]
		}
	}
	return session
}

// The client says what ZEO's own client was heard to say, and understands what
// the real server answered.
func TestRecordedSessions(t *testing.T) {
	t.Parallel()
	all := sessions(t)
	// A commit by another client between register and get_info.
	news := append([]line(nil), conversation(t, all[1])...)
	for _, l := range all[1] {
		if bytes.Contains(l.message, []byte("invalidateTransaction")) {
			news = append(news[:5], l, news[5])
		}
	}
	for _, test := range []struct {
		name, storage string
		session       []line
		want          string // in the error of register
		size          int64
	}{
		{"1: Z5, ZEO's own client", "1", conversation(t, all[1]), "", 462},
		{"2: Z5", "1", conversation(t, all[2]), "", 610},
		{"3: M5", "1", conversation(t, all[3]), "", 314},
		{"4: unknown storage", "nosuch", all[4], `ZEO server answered with "builtins.ValueError": "[unknown storage: nosuch]"`, 0},
		{"1: with an invalidation first", "1", news, "", 462},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			heard := make(chan error, 1)
			go func() { heard <- replay(theirs, test.session) }()
			s, err := handshake(t.Context(), ours)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, err = s.call(t.Context(), "register", test.storage, true)
			if test.want != "" {
				if answer := (*ServerError)(nil); !errors.As(err, &answer) || err.Error() != test.want {
					t.Errorf("got %v, want %s", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := &Client{}
			if err := c.held.Replace(t.Context(), func(context.Context) (*session, error) { return s, nil }); err != nil {
				t.Fatal(err)
			}
			info, err := c.Info(t.Context())
			if err != nil || info.Size != test.size || !strings.HasSuffix(info.Name, "Data1.fs") || info.Length != 1 {
				t.Errorf("got %+v, %v", info, err)
			}
			if list, ok := info.All["interfaces"].([]any); !ok || len(list) != 9 {
				t.Errorf("interfaces are %v", info.All["interfaces"])
			}
			if err := <-heard; err != nil {
				t.Error(err)
			}
		})
	}
}

// replay says the server's part of a session, and wants to hear the client's:
// the same values, whatever opcodes they are made of. Whether the registration
// is for reading only is the client's choice.
func replay(c net.Conn, session []line) error {
	r := bufio.NewReader(c)
	for _, l := range session {
		if !l.toServer {
			if _, err := c.Write(frame(l.message)); err != nil {
				return err
			}
			continue
		}
		got, _, err := readFrame(r, keep)
		if err != nil {
			return err
		}
		if len(l.message) == 2 {
			if !bytes.Equal(got, l.message) {
				return errors.New("client speaks another protocol")
			}
			continue
		}
		if want := said(l.message); said(got) == "" || said(got) != want {
			return errors.New("client said " + said(got) + ", want " + want)
		}
	}
	return nil
}

// said is a call in words.
func said(message []byte) string {
	parts, err := pickle{}.tuple(message)
	if err != nil {
		if parts, err = (msgpack{}).tuple(message); err != nil {
			return ""
		}
	}
	if args, ok := parts[3].([]any); ok && len(args) == 2 {
		parts[3] = args[0]
	}
	if parts[1] == false {
		parts[1] = int64(0)
	}
	b := &strings.Builder{}
	for _, p := range parts {
		b.WriteString(strings.TrimSpace(strings.Join([]string{reflect.TypeOf(p).String(), toText(p)}, " ")) + ", ")
	}
	return b.String()
}

func toText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		return strings.Repeat("[]", len(v)+1)
	case int64:
		return strings.Repeat("I", int(v))
	}
	return "?"
}

// Every recorded message is read whole by its codec.
func TestEveryRecordedMessage(t *testing.T) {
	t.Parallel()
	for n, session := range sessions(t) {
		for i, l := range session {
			m := l.message
			if len(m) == 2 || bytes.HasPrefix(m, []byte("ruok")) || bytes.HasPrefix(m, []byte("{")) {
				continue
			}
			var c codec = pickle{}
			if m[0] == 0x94 {
				c = msgpack{}
			}
			h, err := c.head(m)
			parts, tupleErr := c.tuple(m)
			if err := errors.Join(err, tupleErr); err != nil {
				t.Errorf("session %d, message %d: %v", n, i, err)
				continue
			}
			if len(parts) != 4 || h.method != parts[2] || h.hasID && h.id != parts[0] {
				t.Errorf("session %d, message %d: head %+v of %v", n, i, h, parts)
			}
		}
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		c    codec
		in   string
		want []any
	}{
		{pickle{}, "\x80\x03(J\xff\xff\xff\xffK\x00X\x01\x00\x00\x00xNt.", []any{int64(-1), int64(0), "x", nil}},
		{pickle{}, "\x80\x03(\x8a\x00\x8a\x01\xff\x8a\x02\x00\x80\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ft.", []any{int64(0), int64(-1), int64(-32768), int64(1<<63 - 1)}},
		{pickle{}, "\x80\x03(M\x01\x02G\x3f\xf0\x00\x00\x00\x00\x00\x00U\x01a]K\x07at.", []any{int64(513), 1.0, "a", []any{int64(7)}}},
		{msgpack{}, "\x94\xff\xcc\xff\xcd\xff\xff\xd0\x80", []any{int64(-1), int64(255), int64(65535), int64(-128)}},
		{msgpack{}, "\x94\xd3\xff\xff\xff\xff\xff\xff\xff\xfe\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00\xca\x3f\x80\x00\x00\xd9\x01a", []any{int64(-2), 1.0, 1.0, "a"}},
	} {
		got, err := test.c.tuple([]byte(test.in))
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %v, %v; want %v", test.in, got, err, test.want)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		c        codec
		in, want string
	}{
		{pickle{}, "\x80\x05.", "pickle protocol 5"},
		{pickle{}, "cos\nsystem\n.", "opcode 0x63"},
		{pickle{}, "K", "ends in the middle"},
		{pickle{}, ".", "other than one value"},
		{pickle{}, "(.", "other than one value"},
		{pickle{}, "t.", "no mark"},
		{pickle{}, "\x87.", "more than there is"},
		{pickle{}, "(\x85.", "a mark for a value"},
		{pickle{}, "K\x01K\x01a.", "neither list nor dictionary"},
		{pickle{}, "}K\x01K\x01s.", "int64 for a key"},
		{pickle{}, "}(X\x01\x00\x00\x00xu.", "neither list nor dictionary"},
		{pickle{}, "\x8a\x09123456789.", "more than 64 bits"},
		{pickle{}, "X\xff\xff\xff\xffx", "ends in the middle"},
		{pickle{}, "K\x01.", "no tuple"},
		{msgpack{}, "\xc1", "type 0xc1"},
		{msgpack{}, strings.Repeat("\x91", 40), "nested more than 32 deep"},
		{msgpack{}, "\xdd\xff\xff\xff\xff", "ends in the middle"},
		{msgpack{}, "\x81\x01\x01", "int64 for a key"},
		{msgpack{}, "\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "more than 63 bits"},
		{msgpack{}, "\x90\x90", "after its end"},
		{msgpack{}, "\x01", "no array"},
	} {
		if _, err := test.c.tuple([]byte(test.in)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.20q: got %v, want %q", test.in, err, test.want)
		}
	}
}

// A message longer than is kept is still understood as an answer.
func TestLongAnswer(t *testing.T) {
	t.Parallel()
	answer := append([]byte("\x80\x03(K\x01K\x00X\x06\x00\x00\x00.replyC"), "\x00X\x00\x00\x02\x00"...)
	answer = append(append(answer, bytes.Repeat([]byte("x"), 1<<17)...), "\x85t."...)
	message, cut, err := readFrame(bufio.NewReader(bytes.NewReader(frame(answer))), keep)
	if err != nil || !cut || len(message) != keep {
		t.Fatalf("%d bytes, cut %v, %v", len(message), cut, err)
	}
	h, err := pickle{}.head(message)
	if err != nil || h.method != ".reply" || h.id != 1 {
		t.Errorf("got %+v, %v", h, err)
	}
	if _, err := (reply{message: message, cut: cut, codec: pickle{}}).value(); err == nil {
		t.Error("read the value of half a message")
	}
}

func FuzzPickle(f *testing.F)  { fuzz(f, pickle{}) }
func FuzzMsgpack(f *testing.F) { fuzz(f, msgpack{}) }

func fuzz(f *testing.F, c codec) {
	for _, session := range sessions(f) {
		for _, l := range session {
			f.Add(l.message)
		}
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		parts, err := c.tuple(message)
		h, headErr := c.head(message)
		if err == nil && headErr == nil && len(parts) == 4 && h.hasID && h.id != parts[0] {
			t.Errorf("head %+v of %v", h, parts)
		}
	})
}
