package zeo_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"deadpeer/heartbeat/zeo"
	"deadpeer/internal/zeotest"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func serve(t *testing.T, msgpack bool) *zeotest.Server {
	t.Helper()
	s := zeotest.Serve(listen(t), msgpack)
	t.Cleanup(s.Close)
	return s
}

func TestClient(t *testing.T) {
	t.Parallel()
	for name, msgpack := range map[string]bool{"Z5": false, "M5": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, msgpack)
			c, err := zeo.Dial(t.Context(), s.Addr().String(), zeo.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Ping(t.Context()); err != nil || c.Heard() >= 0 {
				t.Errorf("%v; the answer to a ping counts as heard, %v ago", err, c.Heard())
			}
			for range 300 { // numbers of one and of two bytes
				s.Tell()
				if err := c.Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if info, err := c.Info(t.Context()); err != nil || info.Name != "/Data.fs" || info.Size != 610 || info.Length != 1 {
				t.Errorf("got %+v, %v", info, err)
			}
			if ago := c.Heard(); ago < 0 || ago > 10*time.Second {
				t.Errorf("heard %v ago", ago)
			}
			_, err = zeo.Dial(t.Context(), s.Addr().String(), zeo.Options{Storage: "nosuch"})
			if answer := (*zeo.ServerError)(nil); !errors.As(err, &answer) || answer.Class != "builtins.ValueError" {
				t.Errorf("unknown storage: %v", err)
			}
		})
	}
}

func TestHungServerCostsADeadline(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	c, err := zeo.Dial(t.Context(), s.Addr().String(), zeo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.Hang()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestServerGoesAndComesBack(t *testing.T) {
	t.Parallel()
	l := listen(t)
	address := l.Addr().String()
	s := zeotest.Serve(l, true)
	c, err := zeo.Dial(t.Context(), address, zeo.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.Close()
	if err := c.Ping(t.Context()); err == nil {
		t.Fatal("a closed server answered")
	}
	if err := c.Reconnect(t.Context()); err == nil {
		t.Fatal("reconnected to nobody")
	}
	if err := c.Ping(t.Context()); !errors.Is(err, zeo.ErrNotConnected) || c.Heard() >= 0 {
		t.Errorf("ping without a connection: %v, heard %v ago", err, c.Heard())
	}
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	s = zeotest.Serve(l, true)
	defer s.Close()
	if err := c.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if err := c.Reconnect(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reconnect of a closed client: %v", err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	s := zeotest.Serve(tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}), false)
	t.Cleanup(s.Close)
	c, err := zeo.Dial(t.Context(), s.Addr().String(), zeo.Options{TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := zeo.Dial(t.Context(), s.Addr().String(), zeo.Options{TLS: &tls.Config{}}); err == nil {
		t.Error("a certificate nobody vouches for was taken")
	}
}

// What a hostile or different server says is a clear error.
func TestStrangers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		says []byte
		want string
	}{
		"ZEO 4":      {mustHex("00000002" + "5a34"), `server speaks the protocol "Z4"`},
		"HTTP":       {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), `server is none of ZEO: it begins with "HTTP"`},
		"closes":     {nil, "read the server's protocol: EOF"},
		"no tuple":   {mustHex("000000025a35" + "00000004" + "80034e2e"), "message is no tuple of four"},
		"bad opcode": {mustHex("000000025a35" + "00000006" + "800328630a2e"), "0x63, which makes no plain value"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listen(t)
			go func() {
				if c, err := l.Accept(); err == nil {
					_, _ = c.Write(test.says)
					if test.says != nil {
						_ = c.(*net.TCPConn).CloseWrite()
						_, _ = io.Copy(io.Discard, c)
					}
					_ = c.Close()
				}
			}()
			_, err := zeo.Dial(t.Context(), l.Addr().String(), zeo.Options{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
