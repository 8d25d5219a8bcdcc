package beat_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/beat"
)

// says answers each request of three words or fewer with the next answer.
func says(t *testing.T, got *[]string, answers ...string) (address string) {
	t.Helper()
	l := listen(t)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		for _, answer := range answers {
			head, err := r.ReadString('\n')
			if err != nil {
				return
			}
			words, _ := strconv.Atoi(strings.Trim(head, "*\r\n"))
			command := ""
			for range 2 * words {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				command += strings.TrimSpace(line) + " "
			}
			if got != nil {
				*got = append(*got, command)
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, c)
	}()
	return l.Addr().String()
}

func TestRedisLogsIn(t *testing.T) {
	t.Parallel()
	var got []string
	e, err := open(t, "redis://me:a%20b@"+says(t, &got, "+OK\r\n", "+OK\r\n", "+PONG\r\n", "+PONG\r\n", "-LOADING dataset\x1b[2J\r\n", "+PONG\r\n")+"/2")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Ping(t.Context()); err == nil || e.Text(err) != `redis PING: LOADING dataset\x1b[2J` {
		t.Errorf("a server that loads: %v", err)
	}
	if err := e.Ping(t.Context()); err != nil {
		t.Errorf("on the same connection: %v", err)
	}
	want := "$4 AUTH $2 me $3 a b |$6 SELECT $1 2 |$4 PING |$4 PING |$4 PING |$4 PING "
	if text := strings.Join(got, "|"); text != want {
		t.Errorf("server was told %q, want %q", text, want)
	}
}

// An answer that comes late is not taken for that to the next PING, which finds
// the connection as it was.
func TestLateRedis(t *testing.T) {
	t.Parallel()
	l := listen(t)
	resume := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "+PONG\r\n") // to the first, at once
		<-resume
		_, _ = io.WriteString(c, "-LOADING\r\n+PONG\r\n-MISCONF\r\n")
		_, _ = io.Copy(io.Discard, c)
	}()
	e, err := beat.Open("redis://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if err := e.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that is late: %v", err)
	}
	close(resume)
	if err := e.Ping(t.Context()); err != nil {
		t.Errorf("the ping after that: %v", err)
	}
	if err := e.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "MISCONF") {
		t.Errorf("the third: %v", err)
	}
}

func TestNoRedis(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"":                              "deadline exceeded",
		"-NOAUTH no\r\n":                "NOAUTH no",
		"HTTP/1.1 400 Bad Request\r\n":  "which is not Redis's",
		"\r\n":                          "which is not Redis's",
		"$5\r\nhello\r\n":               "which is not Redis's",
		strings.Repeat("+", 1<<16):      "longer than",
		"+PONG\r\n" + "+" + "\x00\r\n+": "",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if answer == "" {
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		}
		e, err := beat.Open("redis://" + says(t, nil, answer))
		if err != nil {
			t.Fatal(err)
		}
		err = e.Reconnect(ctx)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: got %v, want %q", answer, err, want)
		}
		cancel()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRealRedis(t *testing.T) {
	t.Parallel()
	server, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed (.ci/packages)")
	}
	l := listen(t)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, server, "--port", port, "--bind", "127.0.0.1", "--save", "", "--requirepass", "hidden")
	cmd.Dir = t.TempDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	good, err := beat.Open("redis://:hidden@127.0.0.1:" + port + "/3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = good.Close() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = good.Reconnect(t.Context()); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := good.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for raw, want := range map[string]string{
		"redis://127.0.0.1:" + port:                    "NOAUTH",
		"redis://:wrong@127.0.0.1:" + port:             "WRONGPASS",
		"redis://:hidden@127.0.0.1:" + port + "/99999": "DB index is out of range",
	} {
		if _, err := open(t, raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", raw, err, want)
		}
	}
}
