package forecast_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kernelCase is one connection that is left to this machine's kernel. The
// sysctls follow from the input.
type kernelCase struct {
	situation forecast.Situation
	in        forecast.Input
}

func (c kernelCase) name() string {
	var b strings.Builder
	b.WriteString(string(c.situation))
	add := func(name string, value any, zero bool) {
		if !zero {
			fmt.Fprintf(&b, " %s=%v", name, value)
		}
	}
	p := c.in.Policy
	if c.in.KeepAlive {
		fmt.Fprintf(&b, " %v+%d*%v", p.Idle, p.Probes, p.Interval)
	}
	add("ut", p.UserTimeout, p.UserTimeout == 0)
	add("retries2", c.in.Retries2, c.in.Retries2 == 0)
	add("syn", c.in.SYNRetries, c.in.SYNRetries == 0)
	add("linear", c.in.SYNLinear, c.in.SYNLinear == 0)
	add("orphan", c.in.OrphanRetries, c.in.OrphanRetries == 0)
	add("rtomax", c.in.RTOMax, c.in.RTOMax == 0)
	add("fin", c.in.FinTimeout, c.in.FinTimeout == 0)
	add("linger2", c.in.Linger2, c.in.Linger2 == 0)
	add("probedfor", c.in.ProbedFor, c.in.ProbedFor == 0)
	add("ownership", c.in.Ownership, c.in.Ownership == forecast.Usual)
	add("packets", c.in.Packets, c.in.Packets == 0)
	add("notlp", "", !c.in.NoLossProbe)
	add("ipv6", "", !c.in.IPv6)
	add("nohop", "", !c.in.NoNeighbour)
	return b.String()
}

func kernelCases() (list []kernelCase) {
	const s = time.Second
	add := func(situation forecast.Situation, inputs ...forecast.Input) {
		for _, in := range inputs {
			if in.RTOMax != 0 && !has("tcp_rto_max_ms") || // from Linux 6.15 on
				situation == forecast.SituationSynSent && in.SYNLinear >= 0 && !has("tcp_syn_linear_timeouts") { // from 6.5 on
				continue
			}
			list = append(list, kernelCase{situation: situation, in: in})
		}
	}
	alive := func(idle, interval, probes int, userTimeout time.Duration) forecast.Input {
		return forecast.Input{KeepAlive: true, Policy: policy(idle, interval, probes, userTimeout)}
	}
	v6 := func(in forecast.Input) forecast.Input { in.IPv6 = true; return in }
	ut := func(d time.Duration) forecast.Input { return forecast.Input{Policy: policy(0, 0, 0, d)} }

	add(forecast.SituationIdle, alive(1, 1, 1, 0), alive(1, 1, 3, 0), alive(2, 1, 2, 0), alive(3, 2, 2, 0), alive(2, 3, 2, 0),
		alive(5, 2, 3, 0), alive(9, 5, 2, 0), alive(17, 3, 1, 0), alive(2, 1, 3, 5500*ms), alive(3, 2, 5, 3*s), alive(5, 2, 3, 7100*ms),
		alive(2, 1, 1, 6*s), v6(alive(2, 1, 3, 0)), v6(alive(3, 1, 9, 5200*ms)), forecast.Input{})
	add(forecast.SituationCloseWait, alive(1, 1, 2, 0), alive(3, 2, 3, 0), alive(2, 1, 2, 4500*ms), v6(alive(2, 1, 2, 0)))
	add(forecast.SituationRebooted, alive(3, 1, 1, 0), alive(4, 1, 5, 0), v6(alive(2, 1, 1, 500*ms)))
	for retries := 1; retries <= 6; retries++ {
		add(forecast.SituationInFlight, forecast.Input{Retries2: retries})
	}
	add(forecast.SituationInFlight, forecast.Input{Retries2: -1}, forecast.Input{RTOMax: s}, forecast.Input{RTOMax: 2 * s, Retries2: 8},
		ut(500*ms), ut(2*s), ut(5*s), forecast.Input{Retries2: 4, NoLossProbe: true}, forecast.Input{Retries2: 3, Packets: 3},
		v6(forecast.Input{Retries2: 4}), v6(ut(3*s)))
	midProbe := alive(1, 1, 9, 0)
	midProbe.Retries2 = 3
	add(forecast.SituationMidProbeWrite, midProbe, alive(1, 1, 9, 4*s))
	add(forecast.SituationZeroWindow, forecast.Input{Retries2: 2}, forecast.Input{Retries2: 3}, forecast.Input{Retries2: 4},
		forecast.Input{Retries2: 3, ProbedFor: 1750 * ms}, forecast.Input{Retries2: 4, ProbedFor: 1 * s}, forecast.Input{RTOMax: s, Retries2: 6, ProbedFor: 3 * s},
		forecast.Input{Policy: policy(0, 0, 0, 6*s), ProbedFor: 2 * s}, v6(forecast.Input{Retries2: 3, ProbedFor: 500 * ms}),
		forecast.Input{OrphanRetries: 3, Ownership: forecast.Orphaned}, forecast.Input{RTOMax: s, Ownership: forecast.Orphaned})
	add(forecast.SituationZeroWindowAlive, ut(1*s), ut(5*s), v6(ut(3*s)), forecast.Input{Retries2: 3},
		forecast.Input{RTOMax: s, Ownership: forecast.Orphaned}, forecast.Input{RTOMax: 2 * s, OrphanRetries: 2, Ownership: forecast.Orphaned},
		forecast.Input{RTOMax: s, OrphanRetries: 6, Ownership: forecast.Orphaned},
		forecast.Input{RTOMax: s, Retries2: 2, Ownership: forecast.Orphaned}, forecast.Input{RTOMax: s, Retries2: 3, OrphanRetries: 4, Ownership: forecast.Orphaned})
	for retries := 1; retries <= 3; retries++ {
		add(forecast.SituationSynSent, forecast.Input{SYNRetries: retries}, forecast.Input{SYNRetries: retries, SYNLinear: -1})
		add(forecast.SituationSynReceived, forecast.Input{SYNRetries: retries})
	}
	syn := func(in forecast.Input, retries int) forecast.Input { in.SYNRetries = retries; return in }
	add(forecast.SituationSynSent, ut(2500*ms), ut(9*s), syn(forecast.Input{RTOMax: 2 * s}, 4), v6(syn(forecast.Input{}, 2)),
		forecast.Input{NoNeighbour: true}, v6(forecast.Input{NoNeighbour: true}))
	add(forecast.SituationSynReceived, forecast.Input{SYNRetries: -1}, syn(forecast.Input{RTOMax: 2 * s}, 3), v6(syn(forecast.Input{}, 2)))
	for _, situation := range []forecast.Situation{forecast.SituationFinWait1, forecast.SituationLastAck} {
		held := forecast.Input{Retries2: 3, Ownership: forecast.Held}
		heldUT := ut(2 * s)
		heldUT.Ownership = forecast.Held
		add(situation, forecast.Input{OrphanRetries: 1}, forecast.Input{OrphanRetries: 3}, forecast.Input{RTOMax: 1 * s},
			ut(3*s), held, heldUT, v6(forecast.Input{OrphanRetries: 2}))
	}
	heldIdle := alive(2, 1, 2, 0)
	heldIdle.Ownership = forecast.Held
	add(forecast.SituationFinWait2, forecast.Input{FinTimeout: 1 * s}, forecast.Input{FinTimeout: 5 * s}, forecast.Input{FinTimeout: 62 * s},
		forecast.Input{Linger2: 3 * s}, forecast.Input{Linger2: -1 * s}, v6(forecast.Input{FinTimeout: 2 * s}), heldIdle)
	add(forecast.SituationARPFailing, forecast.Input{Retries2: 2}, forecast.Input{Retries2: 3}, forecast.Input{Retries2: 4}, forecast.Input{Retries2: 5},
		ut(5*s), v6(forecast.Input{Retries2: 3}), v6(forecast.Input{Retries2: 5}), v6(ut(5*s)))
	return list
}

// The kernel gives connections up when and how the forecast says, or never.
func TestAgainstTheKernel(t *testing.T) {
	t.Parallel()
	world, err := testnet.New(t.Context())
	ok(t, err)
	t.Cleanup(func() { ok(t, world.Close()) })
	counter := tickCounter(t)
	results := make([]result, len(kernelCases()))
	var stages []*stage
	for _, c := range kernelCases() {
		s := &stage{t: t, in: c.in, counter: counter}
		s.in.HZ = jiffies.HZ()
		s.build(world, c.situation)
		stages = append(stages, s)
	}
	var wg sync.WaitGroup
	for i, c := range kernelCases() {
		s := stages[i]
		time.Sleep(20 * ms) // cutting one link at a time is quick
		wg.Go(func() {      // waiting all the time: more of them at once than t.Parallel allows
			t.Run(c.name(), func(t *testing.T) {
				s.t = t
				errno, died := s.play(c.situation)
				took := time.Since(s.zero)
				f, err := forecast.For(c.situation, s.in)
				ok(t, err)
				expected, certain := s.expected(c.situation)
				unseen := took - max(0, s.notYet.Sub(s.zero))
				results[i] = result{c.name(), f, expected, certain, took, unseen, died, errno}
				if died != f.GivesUp || errno != f.Errno {
					t.Fatalf("ended %v with %q after %v, want %v with %q", died, errno, took, f.GivesUp, f.Errno)
				}
				if !died {
					return
				}
				// The machine may be slow, never early.
				const early, late = 20 * ms, 1500 * ms
				if took < f.Earliest-early || took-unseen > f.Latest+late {
					t.Errorf("given up after %v, want %v to %v", took, f.Earliest, f.Latest)
				}
				if certain && (expected < f.Earliest-early || expected > f.Latest+early) {
					t.Errorf("expected at %v, out of %v to %v", expected, f.Earliest, f.Latest)
				}
			})
		})
	}
	wg.Wait()
	if *reportFile != "" {
		ok(t, writeReport(*reportFile, results))
	}
}

// forever is longer than what would end those connections if not for the rule.
const forever = 12 * time.Second

// play brings the situation about and waits for its end. It does not wait for
// ever where there is none.
func (s *stage) play(situation forecast.Situation) (errno string, died bool) {
	held := s.in.Ownership == forecast.Held
	f, err := forecast.For(situation, s.in)
	ok(s.t, err)
	switch situation {
	case forecast.SituationSynSent:
		addr := s.address(s.peer)
		if s.in.NoNeighbour {
			addr = addr.Next()
		} else {
			s.converse() // so that the neighbour is known
			ok(s.t, s.link.Cut())
		}
		return s.connect(netip.AddrPortFrom(addr, 1)), true
	case forecast.SituationSynReceived:
		s.half()
		return s.gone(), true
	}
	s.converse()
	s.exchange()
	switch situation {
	case forecast.SituationIdle:
		ok(s.t, s.link.Cut())
		s.fromHeard()
		s.describe()
	case forecast.SituationCloseWait:
		ok(s.t, s.theirs.CloseWrite())
		s.until("CLOSE-WAIT", func() bool { return s.info(s.ours).State == 8 })
		ok(s.t, s.link.Cut())
		s.fromHeard()
		s.describe()
	case forecast.SituationRebooted:
		ok(s.t, s.peer.Reboot())
		s.fromHeard()
		s.describe()
	case forecast.SituationInFlight:
		ok(s.t, s.link.Cut())
		s.write()
	case forecast.SituationMidProbeWrite:
		ok(s.t, s.link.Cut())
		s.until("two probes", func() bool { return s.info(s.ours).Probes == 2 })
		s.write()
	case forecast.SituationARPFailing:
		s.loseNeighbour()
		s.write()
	case forecast.SituationZeroWindow, forecast.SituationZeroWindowAlive:
		s.fill()
		if situation == forecast.SituationZeroWindow {
			time.Sleep(time.Until(s.zero.Add(s.in.ProbedFor)))
			ok(s.t, s.link.Cut())
			shut := s.zero
			const slop = 100 * ms // the cut is anywhere between the last answer and the next probe
			s.fromHeard()
			s.in.ProbedFor = s.zero.Sub(shut) + slop
			s.zero = shut.Add(s.in.ProbedFor)
			s.zeroMono -= s.in.ProbedFor - slop // the clock is that of the shutting
		}
		if s.in.Ownership == forecast.Orphaned {
			ok(s.t, s.ours.Close())
			if f.GivesUp {
				return s.gone(), true
			}
			time.Sleep(forever)
			c, list := s.sockets()
			ok(s.t, c.Close())
			return "", len(list) == 0
		}
	case forecast.SituationFinWait1, forecast.SituationLastAck:
		if situation == forecast.SituationLastAck {
			ok(s.t, s.theirs.CloseWrite())
			s.until("CLOSE-WAIT", func() bool { return s.info(s.ours).State == 8 })
		}
		ok(s.t, s.link.Cut())
		s.measureRTO()
		s.now()
		if held {
			ok(s.t, s.ours.CloseWrite())
		} else {
			ok(s.t, s.ours.Close())
			return s.gone(), true
		}
	case forecast.SituationFinWait2:
		s.measureRTO()
		s.now()
		if held {
			ok(s.t, s.ours.CloseWrite())
			s.until("FIN-WAIT-2", func() bool { return s.info(s.ours).State == 5 })
			ok(s.t, s.link.Cut())
			s.fromHeard()
			s.describe()
		} else {
			ok(s.t, s.ours.Close())
			return s.gone(), true
		}
	}
	if !f.GivesUp {
		time.Sleep(forever)
		return "", s.info(s.ours).State == tcpClose
	}
	return s.death(), true
}

// tickCounter is the zero Counter where the kernel's cannot be read.
func tickCounter(t *testing.T) jiffies.Counter {
	counter, err := jiffies.Read()
	if err != nil && !errors.Is(err, os.ErrPermission) {
		t.Fatal(err)
	}
	return counter
}
