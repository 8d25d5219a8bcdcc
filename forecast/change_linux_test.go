package forecast_test

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/testnet"
)

// A connection found idle or in the middle of probing, whose options are then
// changed, ends when [forecast.Apply] and [forecast.For] say.
func TestChangesAgainstTheKernel(t *testing.T) {
	t.Parallel()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	counter := tickCounter(t)
	const s = time.Second
	on := forecast.Input{KeepAlive: true, Policy: policy(2, 1, 5, 0)}
	type call struct{ level, name, value int }
	keepAlive := func(on int) call { return call{unix.SOL_SOCKET, unix.SO_KEEPALIVE, on} }
	tcp := func(name, value int) call { return call{unix.SOL_TCP, name, value} }
	cases := []struct {
		name    string
		in      forecast.Input
		calls   []call
		changes []forecast.Change
	}{
		{"nothing", on, nil, nil},
		{"options, then keepalive", forecast.Input{},
			[]call{tcp(unix.TCP_KEEPIDLE, 2), tcp(unix.TCP_KEEPINTVL, 1), tcp(unix.TCP_KEEPCNT, 2), keepAlive(1)},
			[]forecast.Change{forecast.SetIdle(2 * s), forecast.SetInterval(s), forecast.SetProbes(2), forecast.SetKeepAlive(true)}},
		{"keepalive, then idle", forecast.Input{},
			[]call{keepAlive(1), tcp(unix.TCP_KEEPINTVL, 1), tcp(unix.TCP_KEEPCNT, 2), tcp(unix.TCP_KEEPIDLE, 2)},
			[]forecast.Change{forecast.SetKeepAlive(true), forecast.SetInterval(s), forecast.SetProbes(2), forecast.SetIdle(2 * s)}},
		{"the same idle", on, []call{tcp(unix.TCP_KEEPIDLE, 2)}, []forecast.Change{forecast.SetIdle(2 * s)}},
		{"a longer idle", on, []call{tcp(unix.TCP_KEEPIDLE, 5)}, []forecast.Change{forecast.SetIdle(5 * s)}},
		{"interval", on, []call{tcp(unix.TCP_KEEPINTVL, 3)}, []forecast.Change{forecast.SetInterval(3 * s)}},
		{"fewer probes", on, []call{tcp(unix.TCP_KEEPCNT, 2)}, []forecast.Change{forecast.SetProbes(2)}},
		{"user timeout", on, []call{tcp(unix.TCP_USER_TIMEOUT, 5100)}, []forecast.Change{forecast.SetUserTimeout(5100 * ms)}},
		{"off and on", on, []call{keepAlive(0), keepAlive(1)}, []forecast.Change{forecast.SetKeepAlive(false), forecast.SetKeepAlive(true)}},
		{"on", on, []call{keepAlive(1)}, []forecast.Change{forecast.SetKeepAlive(true)}},
	}
	var wg sync.WaitGroup
	for _, c := range cases {
		stage := &stage{t: t, in: c.in, counter: counter}
		stage.build(world, forecast.SituationIdle)
		wg.Go(func() {
			t.Run(c.name, func(t *testing.T) {
				s := stage
				s.t = t
				s.converse()
				s.exchange()
				ok(t, s.link.Cut())
				time.Sleep(time.Until(s.zero.Add(3500 * ms)))
				in := s.live()
				s.onFD(s.ours, func(fd int) error {
					for _, o := range c.calls {
						if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
							return err
						}
					}
					return nil
				})
				in, err := forecast.Apply(in, c.changes...)
				ok(t, err)
				exact := forecastOf(t, forecast.SituationIdle, in)
				in.Clock = forecast.Clock{}
				f := forecastOf(t, forecast.SituationIdle, in)
				errno := s.death()
				took := time.Since(s.zero)
				t.Logf("%v to %v, expected %v, took %v", f.Earliest, f.Latest, exact.Expected, took)
				if errno != f.Errno {
					t.Errorf("%q, want %q", errno, f.Errno)
				}
				const early, late = 20 * ms, 1500 * ms
				if took < f.Earliest-early || s.notYet.Sub(s.zero) > f.Latest+late {
					t.Errorf("given up after %v, want %v to %v", took, f.Earliest, f.Latest)
				}
			})
		})
	}
	wg.Wait()
}

// live is what sock_diag tells of our connection now, the moment that a
// forecast then counts from.
func (s *stage) live() forecast.Input {
	c, list := s.sockets()
	if len(list) != 1 {
		s.t.Fatalf("%d connections", len(list))
	}
	s.now() // before it is read: a busy machine makes the end late, never early
	ok(s.t, c.Lookup(list, func(_ int, err error) { ok(s.t, err) }))
	ok(s.t, c.Close())
	in := s.in
	in.HZ, in.Clock = jiffies.HZ(), s.counter.At(s.zeroMono)
	in.Heard, _ = list[0].Heard()
	in.Probes, in.TimerIn = int(list[0].Probes), -1
	if list[0].Timer == conn.TimerKeepalive {
		in.TimerIn = max(1, time.Duration(list[0].TimerMS)*time.Millisecond)
	}
	return in
}
