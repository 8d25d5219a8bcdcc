package forecast_test

import (
	"errors"
	"fmt"
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

// The kernel gives idle connections up when and how the forecast says, or
// never.
func TestIdleAgainstTheKernel(t *testing.T) {
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

	s := time.Second
	cases := []keepalive.Policy{
		{Idle: s, Interval: s, Probes: 1},
		{Idle: s, Interval: s, Probes: 3},
		{Idle: 2 * s, Interval: s, Probes: 2},
		{Idle: 3 * s, Interval: 2 * s, Probes: 2},
		{Idle: 2 * s, Interval: s, Probes: 3, UserTimeout: 5500 * time.Millisecond},
		{},
	}
	type conversation struct {
		policy         keepalive.Policy
		client, server net.Conn
		heard          time.Time
	}
	var list []conversation
	for _, p := range cases {
		c, err := client.Dial(t.Context(), "tcp4", l.Addr().String())
		ok(t, err)
		k, err := l.AcceptTCP()
		ok(t, err)
		t.Cleanup(func() { _, _ = c.Close(), k.Close() })
		if p.Idle > 0 {
			ok(t, keepalive.Set(k, p))
		} else {
			ok(t, keepalive.Disable(k))
		}
		list = append(list, conversation{policy: p, client: c, server: k})
	}
	for i := range list {
		_, err := list[i].client.Write([]byte("x"))
		ok(t, err)
		_, err = list[i].server.Read(make([]byte, 1))
		ok(t, err)
		list[i].heard = time.Now()
	}
	ok(t, link.Cut())
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() {
			on := c.policy.Idle > 0
			f := forecast.Idle(forecast.Input{KeepAlive: on, Policy: c.policy, HZ: hz(t)})
			name := fmt.Sprintf("%v+%d×%v, user timeout %v", c.policy.Idle, c.policy.Probes, c.policy.Interval, c.policy.UserTimeout)
			check := func(right bool, format string, args ...any) {
				if !right {
					t.Errorf("%s: %s", name, fmt.Sprintf(format, args...))
				}
			}
			if !f.GivesUp {
				check(c.server.SetReadDeadline(time.Now().Add(10*time.Second)) == nil, "no deadline")
			}
			_, err := c.server.Read(make([]byte, 1))
			took := time.Since(c.heard)
			if !f.GivesUp {
				check(!on && errors.Is(err, os.ErrDeadlineExceeded), "%v after %v, want nothing for ever", err, took)
				return
			}
			check(errors.Is(err, syscall.ETIMEDOUT) && f.Errno == "ETIMEDOUT", "%v, want %s", err, f.Errno)
			// The machine may be slow to tell us, never early.
			const early, late = 20 * time.Millisecond, 1500 * time.Millisecond
			check(took >= f.Earliest-early && took <= f.Latest+late, "given up after %v, want %v to %v", took, f.Earliest, f.Latest)
			t.Logf("%s: %v, forecast %v to %v", name, took, f.Earliest, f.Latest)
		})
	}
	wg.Wait()
}

// hz is the tick rate of this kernel: the coarse clocks advance once a tick.
func hz(t *testing.T) int {
	var res unix.Timespec
	ok(t, unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res))
	return int(time.Second / time.Duration(res.Nano()))
}
