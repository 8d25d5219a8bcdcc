package session

import (
	"net"
	"path/filepath"
	"testing"
)

// Every address of a name is dialled from within, sockets of the file system
// are not.
func TestDialWithin(t *testing.T) {
	t.Parallel()
	calls := 0
	d := dialer{within: func(f func() error) error {
		calls++
		return f()
	}}
	_, port, err := net.SplitHostPort(listen(t, func(net.Conn) {}))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost"} { // which may be ::1 first
		calls = 0
		c, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err != nil || calls == 0 {
			t.Errorf("%s: %v after %d attempts", host, err, calls)
			continue
		}
		_ = c.Close()
	}
	if _, err := d.DialContext(t.Context(), "tcp", "localhost:1"); err == nil {
		t.Error("connected to nothing")
	}
	calls = 0
	var config net.ListenConfig
	path := filepath.Join(t.TempDir(), "s")
	l, err := config.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Skip(err) // a system without
	}
	defer func() { _ = l.Close() }()
	c, err := d.DialContext(t.Context(), "unix", path)
	if err != nil || calls != 0 {
		t.Fatalf("%v, %d calls", err, calls)
	}
	_ = c.Close()
}
