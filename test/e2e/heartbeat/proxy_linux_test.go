package heartbeat

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deadpeer/heartbeat"
	"deadpeer/heartbeat/http"
	redisbeat "deadpeer/heartbeat/redis"
	"deadpeer/heartbeat/tcp"
	"deadpeer/internal/servertest"
	"deadpeer/internal/testnet"
)

// A proxy whose backend has died still acknowledges: tcp sees nothing wrong,
// the application's own ping does.
func TestProxyHidesItsDeadBackendFromTCP(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	backend, behind := l.backend(t)
	redisServer(t, backend, 6379)
	l.proxy(t, "tcp", `
frontend f
	bind :7000
	default_backend b
backend b
	server s `+behind.IPv4(backend).String()+`:6379
`)
	client := redis.NewClient(&redis.Options{Addr: l.at(7000), Dialer: l.dial, MaxRetries: -1, ContextTimeoutEnabled: true, PoolSize: 1})
	defer client.Close()
	tcpTarget := tcp.New(l.at(7000), l.dial)
	defer tcpTarget.Close()
	hides(t, behind, map[string]target{"tcp": tcpTarget, "redis": redisbeat.New(client)}, "tcp", "redis")
}

// A proxy that speaks HTTP answers PING for its dead backend, as its kernel
// answers TCP keepalive. A request sees it.
func TestProxyHidesItsDeadBackendFromPING(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	backend, behind := l.backend(t)
	file, trust := certificate(t, l.link.IPv4(l.server))
	nginx(t, backend, file)
	l.proxy(t, "http", `
listen web
	bind :443 ssl crt `+file+` alpn h2
	server s `+behind.IPv4(backend).String()+`:80
`)
	targets := map[string]target{}
	for name, path := range map[string]string{"PING": "", "request": "/healthz"} {
		x, err := http.New("https://"+l.at(443)+path, http.Options{TLS: trust, Dial: l.dial})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.Close() })
		targets[name] = x
	}
	hides(t, behind, targets, "PING", "request")
}

// backend makes a host that only the server reaches.
func (l *lab) backend(t *testing.T) (*testnet.Host, *testnet.Link) {
	t.Helper()
	backend, err := l.net.Host("backend")
	if err != nil {
		t.Fatal(err)
	}
	behind, err := l.net.Connect(l.server, backend)
	if err != nil {
		t.Fatal(err)
	}
	return backend, behind
}

// proxy starts haproxy on the server.
func (l *lab) proxy(t *testing.T, mode, config string) {
	t.Helper()
	haproxy := servertest.Program(t, "haproxy", "/usr/sbin/haproxy")
	dir := t.TempDir()
	servertest.Serve(t, l.server, nil, dir, nil, haproxy, "-db", "-f", servertest.Write(t, dir, "haproxy.cfg", `
defaults
	mode `+mode+`
	timeout connect 1h
	timeout client 1h
	timeout server 1h`+config))
}

// hides has the backend lose its power, and makes sure that the proxy goes on
// answering one target, and that the other sees it.
func hides(t *testing.T, behind *testnet.Link, targets map[string]target, answered, sees string) {
	t.Helper()
	d := newDiary()
	m := heartbeat.New(heartbeat.Options{
		Period: 300 * time.Millisecond, Deadline: 2 * time.Second,
		BackoffMin: 200 * time.Millisecond, BackoffMax: 200 * time.Millisecond, Observer: d,
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Stop(context.Background()) }()
	for name, x := range targets {
		m.Add(name, x)
	}
	d.all(t, targets, heartbeat.Up)
	d.mu.Lock()
	made := d.reconnects[answered] // until the proxy was there
	d.mu.Unlock()
	if err := behind.Cut(); err != nil {
		t.Fatal(err)
	}
	d.all(t, map[string]target{sees: nil}, heartbeat.Down)
	d.mu.Lock()
	before := d.answers[answered]
	d.mu.Unlock()
	servertest.Await(t, answered+" to be answered by the proxy", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.answers[answered] > before+1
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state[answered] != heartbeat.Up || d.reconnects[answered] > made {
		t.Errorf("%s is %v and was reconnected %d times: it should have seen nothing", answered, d.state[answered], d.reconnects[answered]-made)
	}
	t.Logf("%s: %q", sees, d.failures[sees][len(d.failures[sees])-1])
}
