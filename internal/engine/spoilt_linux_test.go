package engine

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/testnet"
	"deadpeer/internal/verdict"
)

// during runs f while a check goes on, a while after it began to ask, and
// gives the check's result.
func (w *world) during(r Request, after time.Duration, f func()) map[netip.AddrPort]Connection {
	w.t.Helper()
	once := false
	r.Progress = func(p Progress) {
		if p.Elapsed >= after && !once {
			once = true
			f()
		}
	}
	got := w.check(w.t.Context(), r)
	if !once {
		w.t.Errorf("the check was over before %s", after)
	}
	return got
}

func (w *world) netlink(h *testnet.Host) *netlink.Handle {
	w.t.Helper()
	var nl *netlink.Handle
	ok(w.t, h.Do(func() (err error) {
		nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}))
	w.t.Cleanup(nl.Close)
	return nl
}

// What went unanswered while our own side changed proves nothing: it is
// discarded, and the proof begins anew.
func TestCheckSpoilt(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(w *world, nl *netlink.Handle, device int){
		"link flaps": func(w *world, _ *netlink.Handle, _ int) {
			ok(w.t, w.server.LinkDown(w.toFar))
			ok(w.t, w.server.LinkUp(w.toFar))
		},
		"address changes": func(w *world, nl *netlink.Handle, device int) {
			dev := must(nl.LinkByIndex(device))(w.t)
			addr := must(netlink.ParseAddr("10.9.9.9/24"))(w.t)
			ok(w.t, nl.AddrAdd(dev, addr))
			ok(w.t, nl.AddrDel(dev, addr))
		},
		"neighbour changes": func(w *world, nl *netlink.Handle, device int) {
			for _, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02"} {
				n := &netlink.Neigh{LinkIndex: device, IP: net.IPv4(10, 0, 1, 99), State: netlink.NUD_REACHABLE, HardwareAddr: must(net.ParseMAC(mac))(w.t)}
				ok(w.t, nl.NeighSet(n))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			near, dead, revived := w.connect("tcp4", w.near, 5), w.connect("tcp4", w.far, 5), w.connect("tcp4", w.far, 5)
			nl := w.netlink(w.server)
			_, device := w.toFar.Interface(w.server)
			ok(t, w.toFar.CutPorts(ports(append(revived, dead...))...))
			got := w.during(w.request(), 2500*time.Millisecond, func() {
				spoil(w, nl, device)
				ok(t, w.toFar.HealPorts(ports(revived)...))
			})
			expect(t, got, near, conn.Alive)
			expect(t, got, revived, conn.Alive)
			expect(t, got, dead, conn.Dead, verdict.WhySilent)
			for _, p := range dead {
				if e := got[p].Evidence; e.Questions < e.Unanswered+2 || e.Unanswered < verdict.MinQuestions || e.Silence < verdict.MinSilence {
					t.Errorf("%s: nothing was discarded: %+v", p, e)
				}
			}
		})
	}
}

// Without a route nobody can be asked, be it from the beginning or from the
// middle of a check on.
func TestCheckNoRoute(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]bool{"before": true, "meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			near, far := w.connect("tcp4", w.near, 5), append(w.connect("tcp4", w.far, 5), w.connect("tcp6", w.far, 5)...)
			ok(t, w.toFar.Cut())
			start := time.Now()
			nl := w.netlink(w.server)
			name, _ := w.toFar.Interface(w.server)
			dev := must(nl.LinkByName(name))(t)
			down := func() { ok(t, nl.LinkSetDown(dev)) }
			var got map[netip.AddrPort]Connection
			if early {
				down()
				got = w.check(t.Context(), w.request())
			} else {
				var done time.Duration
				got = w.during(w.request(), 1500*time.Millisecond, func() { down(); done = time.Since(start) })
				if done > verdict.MinSilence {
					t.Skipf("too slow: after %s peers may have been proven dead", done)
				}
			}
			expect(t, got, near, conn.Alive)
			expect(t, got, far, conn.Unknown, verdict.WhyNotAsked)
			for _, p := range far {
				if c := got[p]; !strings.Contains(c.Reason(), "no route leads to the peer") {
					t.Errorf("%s: %s", p, c.Reason())
				}
			}
		})
	}
}

// A route that the kernel chooses by the user of the socket is the one that
// counts.
func TestCheckRouteOfUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	far := w.connect("tcp4", w.far, 2)
	const user = 4711
	control(t, w.servers[far[0]], func(fd int) { ok(t, unix.Fchown(fd, user, -1)) })
	rule := netlink.NewRule()
	rule.Family, rule.UIDRange, rule.Type, rule.Priority = unix.AF_INET, netlink.NewRuleUIDRange(user, user), unix.RTN_PROHIBIT, 100
	ok(t, w.netlink(w.server).RuleAdd(rule))
	got := w.check(t.Context(), w.request())
	expect(t, got, far[:1], conn.Unknown, verdict.WhyNotAsked)
	expect(t, got, far[1:], conn.Alive)
}
