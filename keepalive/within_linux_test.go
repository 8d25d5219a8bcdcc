package keepalive_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/testnet"
	"deadpeer/keepalive"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Twenty connections, half of them with data in flight, half idle: the kernel
// gives them up when Within promises.
func TestWithinAgainstTheKernel(t *testing.T) {
	t.Parallel()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	server, err := world.Host("server")
	ok(t, err)
	client, err := world.Host("client")
	ok(t, err)
	link, err := world.Connect(server, client)
	ok(t, err)
	l, err := server.Listen(t.Context(), "tcp4", netip.AddrPortFrom(link.IPv4(server), 0).String())
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })

	type conversation struct {
		d              time.Duration
		inFlight       bool
		client, server *net.TCPConn
		heard          time.Time
	}
	var list []conversation
	for i := range 20 {
		c := conversation{d: keepalive.LeastWithin + time.Duration(i/2)*time.Second, inFlight: i%2 == 1}
		p, err := keepalive.Within(c.d)
		ok(t, err)
		c.client, err = client.Dial(t.Context(), "tcp4", l.Addr().String())
		ok(t, err)
		c.server, err = l.AcceptTCP()
		ok(t, err)
		t.Cleanup(func() { _, _ = c.client.Close(), c.server.Close() })
		ok(t, keepalive.Set(c.server, p))
		list = append(list, c)
	}
	for i := range list {
		_, err := list[i].client.Write([]byte("x"))
		ok(t, err)
		_, err = list[i].server.Read(make([]byte, 1))
		ok(t, err)
		list[i].heard = time.Now()
	}
	ok(t, link.Cut())
	// The machine may be slow to tell us, never early.
	const early, late = 20 * time.Millisecond, 1500 * time.Millisecond
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() {
			p, _ := keepalive.Within(c.d)
			f := forecast.Idle(forecast.Input{KeepAlive: true, Policy: p, HZ: hz(t)})
			start, earliest, latest := c.heard, f.Earliest, f.Latest
			if c.inFlight {
				var rto time.Duration
				control(t, c.server, func(fd int) error {
					info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
					if err == nil {
						rto = time.Duration(info.Rto) * time.Microsecond
					}
					return err
				})
				start = time.Now()
				if _, err := c.server.Write([]byte("y")); err != nil {
					t.Errorf("%v: %v", c.d, err)
					return
				}
				// The tail-loss probe's timeout is no longer than that.
				earliest, latest = c.d+rto, (c.d+2*rto)*71/63
			}
			_, err := c.server.Read(make([]byte, 1))
			took := time.Since(start)
			if !errors.Is(err, syscall.ETIMEDOUT) || took < earliest-early || took > latest+late {
				t.Errorf("within %v, in flight %v: %v after %v, want ETIMEDOUT after %v to %v", c.d, c.inFlight, err, took, earliest, latest)
			}
			t.Logf("within %v, in flight %v: %v (%v to %v)", c.d, c.inFlight, took, earliest, latest)
		})
	}
	wg.Wait()
}

// hz is the tick rate of this kernel: the coarse clocks advance once a tick.
func hz(t *testing.T) int {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil {
		t.Error(err)
		return 0
	}
	return int(time.Second / time.Duration(res.Nano()))
}
