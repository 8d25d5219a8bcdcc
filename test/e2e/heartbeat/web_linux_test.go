package heartbeat

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/http"
	"deadpeer/internal/servertest"
	"deadpeer/internal/testnet"
)

// certificate makes one for an address, with its key in a PEM file, and the
// configuration of those who trust it.
func certificate(t *testing.T, address netip.Addr) (file string, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{address.AsSlice()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return servertest.Write(t, t.TempDir(), "cert.pem", string(text)), &tls.Config{RootCAs: roots}
}

// nginx serves HTTP/1.1 on port 80 and HTTP/2 over TLS on port 443. It closes
// connections that are idle for a second.
func nginx(t *testing.T, host *testnet.Host, certificate string) {
	t.Helper()
	dir := t.TempDir()
	servertest.Serve(t, host, nil, dir, nil, servertest.Program(t, "nginx", "/usr/sbin/nginx"), "-p", dir, "-e", "stderr", "-c", servertest.Write(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off; master_process off; error_log stderr; pid %[1]s/pid;
events {}
http {
	access_log off; keepalive_timeout 1s;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server {
		listen 80; listen 443 ssl http2;
		ssl_certificate %[2]s; ssl_certificate_key %[2]s;
		location / { return 404; }
	}
}
`, dir, certificate)))
}

// nginx is pinged by PING and by requests, over links that are cut, healed and
// lossy.
func TestNginx(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	file, trust := certificate(t, l.link.IPv4(l.server))
	nginx(t, l.server, file)
	targets := map[string]target{}
	for name, url := range map[string]string{
		"HTTP/2 PING": "https://" + l.at(443), "HTTP/2": "https://" + l.at(443) + "/", "HTTP/1.1": "http://" + l.at(80) + "/",
	} {
		x, err := http.New(url, http.Options{TLS: trust, Dial: l.dial})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.Close() })
		targets[name] = x
	}
	l.cutAndHeal(t, targets)
	l.lossy(t, targets)
}

// A server that closes idle connections sooner than the next ping comes is
// alive and never found to be anything else.
func TestServerClosesIdleConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	file, trust := certificate(t, l.link.IPv4(l.server))
	nginx(t, l.server, file)
	d := newDiary()
	m := heartbeat.New(heartbeat.Options{Period: 2500 * time.Millisecond, Jitter: -1, Observer: d})
	targets := map[string]target{}
	for name, url := range map[string]string{"HTTP/2 PING": "https://" + l.at(443), "HTTP/2": "https://" + l.at(443) + "/", "HTTP/1.1": "http://" + l.at(80) + "/"} {
		x, err := http.New(url, http.Options{TLS: trust, Dial: l.dial})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.Close() })
		servertest.Await(t, "nginx", func() bool { return x.Reconnect(t.Context()) == nil })
		targets[name] = x
		m.Add(name, x)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	servertest.Await(t, "three answers of each", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for name := range targets {
			if d.answers[name] < 3 {
				return false
			}
		}
		return true
	})
	if err := m.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	for name := range targets {
		if len(d.failures[name]) != 0 || d.reconnects[name] != 0 {
			t.Errorf("%s: reconnected %d times, failures %q", name, d.reconnects[name], d.failures[name])
		}
	}
}
