// Package heartbeat holds the adapters of package heartbeat to real servers in
// network namespaces, over links that are cut, healed and made lossy, and
// behind a proxy.
//
// The tests start the servers themselves, with their data in temporary
// folders, and end them. They need root, and the Debian packages that
// .ci/packages names; where something is missing they are skipped, with CI set
// in the environment they fail.
package heartbeat

import (
	"context"
	"database/sql/driver"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
	googlegrpc "google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"deadpeer/heartbeat"
	firebirdbeat "deadpeer/heartbeat/firebird"
	"deadpeer/heartbeat/grpc"
	"deadpeer/heartbeat/http"
	redisbeat "deadpeer/heartbeat/redis"
	"deadpeer/heartbeat/sqlbeat"
	"deadpeer/heartbeat/tcp"
	"deadpeer/heartbeat/websocket"
	"deadpeer/heartbeat/zeo"
	"deadpeer/internal/beat"
	"deadpeer/internal/servertest"
	"deadpeer/internal/testnet"
)

func TestMain(m *testing.M) {
	// The tests wait more than they compute: all of them at once.
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(testnet.Main(m))
}

// lab is a client and a server joined by a link.
type lab struct {
	net            *testnet.Net
	client, server *testnet.Host
	link           *testnet.Link

	mu    sync.Mutex
	ended bool
	calls sync.WaitGroup // into the client's host
}

func newLab(t *testing.T) *lab {
	t.Helper()
	n, err := testnet.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	client, err := n.Host("client")
	if err != nil {
		t.Fatal(err)
	}
	server, err := n.Host("server")
	if err != nil {
		t.Fatal(err)
	}
	link, err := n.Connect(client, server)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{net: n, client: client, server: server, link: link}
	// Clients dial in the background, too: pgx to cancel a query.
	t.Cleanup(func() {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		l.calls.Wait()
	})
	return l
}

// at is the server's address with a port.
func (l *lab) at(port uint16) string {
	return netip.AddrPortFrom(l.link.IPv4(l.server), port).String()
}

// enter runs f, which uses the client's host.
func (l *lab) enter(f func() error) error {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.calls.Add(1)
	l.mu.Unlock()
	defer l.calls.Done()
	return f()
}

// dial connects from the client's host.
func (l *lab) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = l.enter(func() (err error) {
		c, err = l.client.Dial(ctx, network, address)
		return err
	})
	return c, err
}

// pgx is a connector whose connections are of the client's host. Their ports
// are noted.
func (l *lab) pgx(t *testing.T, ports *sync.Map) driver.Connector {
	t.Helper()
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://boss:%s@%s/postgres?sslmode=disable", password, l.at(5432)))
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := l.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if local, ok := c.LocalAddr().(*net.TCPAddr); ok {
			ports.Store(local.AddrPort().Port(), true)
		}
		return c, nil
	}
	return stdlib.GetConnector(*config)
}

// within connects on a thread of the client's host: for targets that take no
// dialer, but dial a literal address on the thread that asks.
type within struct {
	target
	lab *lab
}

func (w within) Reconnect(ctx context.Context) error {
	return w.lab.enter(func() error {
		return w.lab.client.Do(func() error { return w.target.Reconnect(ctx) })
	})
}

// Close closes the target that can be closed.
func (w within) Close() error {
	if c, ok := w.target.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// endpoint is what the command beat makes of a URL.
func (l *lab) endpoint(t *testing.T, url string) target {
	t.Helper()
	e, err := beat.Open(url)
	if err != nil {
		t.Fatal(err)
	}
	return within{e, l}
}

// target is one that connects.
type target interface {
	heartbeat.Target
	heartbeat.Reconnecter
}

// adapters are what is tested, by the server that each group shares.
var adapters = map[string]func(t *testing.T, l *lab) map[string]target{
	"postgres": func(t *testing.T, l *lab) map[string]target {
		postgres(t, l.server)
		return map[string]target{"postgres": sqlbeat.NewSingle(l.pgx(t, new(sync.Map)))}
	},
	"mariadb": func(t *testing.T, l *lab) map[string]target {
		mariadb(t, l.server)
		my := mysql.NewConfig()
		my.User, my.Passwd, my.Net, my.Addr = "boss", password, "lab", l.at(3306)
		my.DialFunc = func(ctx context.Context, _, address string) (net.Conn, error) { return l.dial(ctx, "tcp", address) }
		my.Logger = log.New(io.Discard, "", 0)
		connector, err := mysql.NewConnector(my)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]target{"mariadb": sqlbeat.NewSingle(connector)}
	},
	"firebird": func(t *testing.T, l *lab) map[string]target {
		single, err := firebirdbeat.New(fmt.Sprintf("SYSDBA:%s@%s/%s", password, l.at(3050), firebird(t, l.server)))
		if err != nil {
			t.Fatal(err)
		}
		return map[string]target{"firebird": within{single, l}}
	},
	"redis": func(t *testing.T, l *lab) map[string]target {
		redisServer(t, l.server, 6379)
		client := redis.NewClient(&redis.Options{Addr: l.at(6379), Dialer: l.dial, MaxRetries: -1, ContextTimeoutEnabled: true, PoolSize: 2})
		t.Cleanup(func() { _ = client.Close() })
		targets := map[string]target{"redis": redisbeat.New(client), "redis://": l.endpoint(t, "redis://"+l.at(6379))}
		for i := range 4 { // each of whose pings takes a second
			targets[fmt.Sprintf("tcp#%d", i)] = tcp.New(l.at(6379), l.dial)
		}
		return targets
	},
	"services": func(t *testing.T, l *lab) map[string]target {
		services(t, l.server)
		get, err := http.New("http://"+l.at(8080)+"/healthz", http.Options{Dial: l.dial})
		if err != nil {
			t.Fatal(err)
		}
		feed, err := websocket.New("ws://"+l.at(8080)+"/feed", websocket.Options{Dial: l.dial})
		if err != nil {
			t.Fatal(err)
		}
		rpc, err := grpc.New("passthrough:///"+l.at(50051), grpc.Options{
			Dial: l.dial, DialOptions: []googlegrpc.DialOption{googlegrpc.WithTransportCredentials(insecure.NewCredentials())},
		})
		if err != nil {
			t.Fatal(err)
		}
		return map[string]target{
			"zeo Z5": zeo.New(l.at(8100), zeo.Options{Dial: l.dial}), "zeo M5": zeo.New(l.at(8101), zeo.Options{Dial: l.dial}),
			"http": get, "websocket": feed, "grpc": rpc, "grpc://": l.endpoint(t, "grpc://"+l.at(50051)),
		}
	},
}

// diary notes when targets changed their state, and how often they were
// reconnected.
type diary struct {
	mu         sync.Mutex
	since      map[string]time.Time // in their present state
	state      map[string]heartbeat.State
	reconnects map[string]int
	failures   map[string][]string
	answers    map[string]int
}

func newDiary() *diary {
	return &diary{
		since: map[string]time.Time{}, state: map[string]heartbeat.State{}, reconnects: map[string]int{},
		failures: map[string][]string{}, answers: map[string]int{},
	}
}

func (d *diary) Observe(e heartbeat.Event) {
	if e.Handle == nil {
		return
	}
	name := e.Handle.Name()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.Kind {
	case heartbeat.Changed:
		d.since[name], d.state[name] = time.Now(), e.State
	case heartbeat.Reconnecting:
		d.reconnects[name]++
	case heartbeat.Answered:
		d.answers[name]++
	case heartbeat.Failed, heartbeat.ReconnectFailed:
		d.failures[name] = append(d.failures[name], e.Err.Error())
	}
}

// all waits until each target has the state, and gives the time of each.
func (d *diary) all(t *testing.T, names map[string]target, want heartbeat.State) map[string]time.Time {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		d.mu.Lock()
		var missing []string
		times := map[string]time.Time{}
		for name := range names {
			times[name] = d.since[name]
			if d.state[name] != want {
				missing = append(missing, fmt.Sprintf("%s is %v: %.500q", name, d.state[name], strings.Join(d.failures[name], "; ")))
			}
		}
		d.mu.Unlock()
		if missing == nil {
			return times
		}
		if time.Now().After(deadline) {
			t.Fatalf("want all %v:\n%s", want, strings.Join(missing, "\n"))
		}
	}
}

// Every adapter notices a link that was cut silently within period + deadline
// times failures, reconnects after it was healed, and takes no loss of one
// segment in ten, each way, for a break.
func TestAdapters(t *testing.T) {
	t.Parallel()
	for name, group := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			targets := group(t, l)
			t.Cleanup(func() {
				for _, x := range targets {
					if c, ok := x.(io.Closer); ok {
						_ = c.Close()
					}
				}
			})
			l.cutAndHeal(t, targets)
			l.lossy(t, targets)
		})
	}
}

func (l *lab) cutAndHeal(t *testing.T, targets map[string]target) {
	t.Helper()
	// 0.5 s + 2 × 1.5 s.
	const period, deadline, failures = 500 * time.Millisecond, 1500 * time.Millisecond, 2
	d := newDiary()
	m := heartbeat.New(heartbeat.Options{
		Period: period, Deadline: deadline, Failures: failures,
		BackoffMin: 250 * time.Millisecond, BackoffMax: 500 * time.Millisecond, Observer: d,
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, x := range targets {
		m.Add(name, x)
	}
	d.all(t, targets, heartbeat.Up) // servers need a while, too
	time.Sleep(2 * period)
	cut := time.Now()
	if err := l.link.Cut(); err != nil {
		t.Fatal(err)
	}
	// The bound, and slack for a busy machine.
	const slack = 5 * time.Second
	for name, at := range d.all(t, targets, heartbeat.Down) {
		took := at.Sub(cut)
		t.Logf("%-10s down %.2f s after the cut", name, took.Seconds())
		if took > period+failures*deadline+slack {
			t.Errorf("%s: noticed after %v, want within %v", name, took, period+failures*deadline)
		}
	}
	time.Sleep(time.Second) // of failing attempts
	healed := time.Now()
	if err := l.link.Heal(); err != nil {
		t.Fatal(err)
	}
	for name, at := range d.all(t, targets, heartbeat.Up) {
		took := at.Sub(healed)
		t.Logf("%-10s up %.2f s after healing", name, took.Seconds())
		// An attempt under way when the link heals has its deadline, since
		// what it sent may be sent again late.
		if took > deadline+500*time.Millisecond+slack {
			t.Errorf("%s: reconnected after %v, want within %v", name, took, deadline+500*time.Millisecond)
		}
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// lossy pings with patience over a bad link, as often as ten minutes of a period
// of 30 s would.
func (l *lab) lossy(t *testing.T, targets map[string]target) {
	t.Helper()
	if err := l.link.Lossy(10, 10); err != nil {
		t.Fatal(err)
	}
	lossy := newDiary()
	m := heartbeat.New(heartbeat.Options{Period: 100 * time.Millisecond, Deadline: 10 * time.Second, Observer: lossy})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, x := range targets {
		m.Add(name, x)
	}
	const pings = 10 * 60 / 30
	answers := func() map[string]int {
		lossy.mu.Lock()
		defer lossy.mu.Unlock()
		list := map[string]int{}
		for name := range targets {
			adapter, _, _ := strings.Cut(name, "#")
			list[adapter] += lossy.answers[name]
		}
		return list
	}
	least := time.Now().Add(5 * time.Second)
	servertest.Await(t, "answers over a bad link", func() bool {
		for _, n := range answers() {
			if n < pings {
				return false
			}
		}
		return time.Now().After(least)
	})
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("answers with 10 %% loss each way: %v", answers())
	for name := range targets {
		if lossy.reconnects[name] > 0 {
			t.Errorf("%s: reconnected %d times: %q", name, lossy.reconnects[name], lossy.failures[name])
		}
	}
}
