package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

// foretold is one connection, what scans said of its end, and its end.
type foretold struct {
	name  string
	sock  conn.Sock
	said  []saying
	alive time.Time // when it had not ended
	ended time.Time
}

type saying struct {
	at, earliest, latest, expected time.Time // expected is zero when the scan was not certain
	rule                           forecast.Rule
}

// What scan says of connections that it finds in the middle of whatever they
// wait for holds.
func TestForecastFound(t *testing.T) {
	t.Parallel()
	for name, sysctls := range map[string]map[string]string{
		"doubling": {"tcp_retries2": "3", "tcp_syn_retries": "2", "tcp_orphan_retries": "3", "tcp_fin_timeout": "5"},
		"capped":   {"tcp_retries2": "5", "tcp_rto_max_ms": "1000", "tcp_syn_retries": "1", "tcp_syn_linear_timeouts": "1", "tcp_fin_timeout": "64", "tcp_early_retrans": "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for name, value := range sysctls {
				err := w.server.SetSysctl("net.ipv4."+name, value)
				switch {
				case errors.Is(err, fs.ErrNotExist) && name == "tcp_rto_max_ms": // until Linux 6.15
					t.Skip("this kernel has no " + name)
				case errors.Is(err, fs.ErrNotExist): // tcp_syn_linear_timeouts, until 6.5
					continue
				}
				ok(t, err)
			}
			w.foretell(w.predicaments())
		})
	}
}

// predicaments brings connections of the server into every situation that
// scan forecasts, and cuts them off. They are named by their local ports.
func (w *world) predicaments() map[uint16]string {
	t := w.t
	names := map[uint16]string{}
	name := func(what string, c net.Conn) {
		names[c.LocalAddr().(*net.TCPAddr).AddrPort().Port()] = what
	}
	// The server dials, so that its ports tell its connections apart.
	l := must(w.far.Listen(t.Context(), "tcp4", "0.0.0.0:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	setOpt(t, l, unix.SOL_SOCKET, unix.SO_RCVBUF, 8192)
	pair := func(what string) (ours, theirs *net.TCPConn) {
		ours, theirs = w.dial(w.server, w.toFar.IPv4(w.far), l)
		setOpt(t, ours, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
		name(what, ours)
		return ours, theirs
	}
	write := func(c *net.TCPConn, n int) func() { return func() { must(c.Write(make([]byte, n)))(t) } }
	var after []func() // the cut

	idle, _ := pair("idle")
	for option, value := range map[int]int{unix.TCP_KEEPIDLE: 1, unix.TCP_KEEPINTVL: 2, unix.TCP_KEEPCNT: 3} {
		setOpt(t, idle, unix.SOL_TCP, option, value)
	}
	setOpt(t, idle, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	for _, n := range []int{1, 5000} {
		c, _ := pair(fmt.Sprintf("in flight, %d bytes", n))
		after = append(after, write(c, n))
	}
	limited, _ := pair("in flight, user timeout")
	setOpt(t, limited, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 4000)
	after = append(after, write(limited, 1))
	full, _ := pair("zero window")
	fullUT, _ := pair("zero window, user timeout")
	setOpt(t, fullUT, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 3500)
	fullOrphan, _ := pair("zero window, orphan")
	for _, c := range []*net.TCPConn{full, fullUT, fullOrphan} {
		w.fill(c)
	}
	after = append(after, func() { ok(t, fullOrphan.Close()) })
	closed, _ := pair("fin-wait-1, orphan")
	after = append(after, func() { ok(t, closed.Close()) })
	data, _ := pair("fin-wait-1, orphan with data")
	after = append(after, write(data, 1), func() { ok(t, data.Close()) })
	held, _ := pair("fin-wait-1, held")
	after = append(after, func() { ok(t, held.CloseWrite()) })
	last, theirs := pair("last-ack")
	ok(t, theirs.CloseWrite())
	after = append(after, func() { ok(t, last.Close()) })
	acknowledged, _ := pair("fin-wait-2, orphan")
	ok(t, acknowledged.Close())
	time.Sleep(50 * time.Millisecond) // what was written has arrived
	ok(t, w.toFar.Cut())
	for _, f := range after {
		f()
	}
	name("syn-sent", w.dialNobody(reached(w.toFar.IPv4(w.far), l)))
	return names
}

// fill writes until the peer's window is shut.
func (w *world) fill(c *net.TCPConn) {
	data := make([]byte, 64<<10)
	wait(w.t, "a shut window", func() (shut bool) {
		control(w.t, c, func(fd int) {
			if _, err := unix.Write(fd, data); !errors.Is(err, unix.EAGAIN) {
				ok(w.t, err)
			}
			i := must(unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO))(w.t)
			shut = i.Unacked == 0 && i.Notsent_bytes > 0 && i.Last_ack_recv >= 20
		})
		return shut
	})
}

// dialNobody begins to connect over a link that is cut.
func (w *world) dialNobody(to netip.AddrPort) net.Conn {
	t := w.t
	var fd int
	ok(t, w.server.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect: %v", err)
	}
	local := must(unix.Getsockname(fd))(t).(*unix.SockaddrInet4)
	return connectingConn{addr: &net.TCPAddr{IP: local.Addr[:], Port: local.Port}}
}

// connectingConn is a connection so far as it has a local address.
type connectingConn struct {
	net.Conn
	addr net.Addr
}

func (c connectingConn) LocalAddr() net.Addr { return c.addr }

// foretell scans again and again until the connections have ended, and holds
// every scan to what it said.
func (w *world) foretell(names map[uint16]string) {
	t := w.t
	found := map[uint64]*foretold{}
	begin := time.Now()
	for next := time.Now(); time.Since(begin) < 20*time.Second; {
		if time.Now().After(next) {
			w.scanFor(names, found)
			next = time.Now().Add(330 * time.Millisecond)
		}
		if w.poll(found) == 0 && len(found) > 0 {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	if len(found) != len(names) {
		t.Errorf("%d connections found, want %d", len(found), len(names))
	}
	certain, sayings := 0, 0
	var table []string
	for _, f := range found {
		if f.ended.IsZero() || len(f.said) == 0 {
			t.Errorf("%s: %d forecasts, ended %v: %+v", f.name, len(f.said), f.ended, f.sock)
			continue
		}
		for _, s := range f.said {
			sayings++
			// A busy machine is late, never early.
			const early, late = 25 * time.Millisecond, 1500 * time.Millisecond
			since := func(at time.Time) string { return fmt.Sprintf("%7.3f", at.Sub(begin).Seconds()) }
			off := ""
			if f.ended.Before(s.earliest.Add(-early)) || f.alive.After(s.latest.Add(late)) {
				t.Errorf("%s: at %s: given up at %s, want %s to %s", f.name, since(s.at), since(f.ended), since(s.earliest), since(s.latest))
			}
			if !s.expected.IsZero() {
				certain++
				if off = fmt.Sprintf("%6.1f ms", f.ended.Sub(s.expected).Seconds()*1000); f.ended.Before(s.expected.Add(-early)) || f.alive.After(s.expected.Add(late)) {
					t.Errorf("%s: at %s: given up at %s, expected %s", f.name, since(s.at), since(f.ended), since(s.expected))
				}
			}
			table = append(table, fmt.Sprintf("%-30s %s  %s %s  %s  %-14s %s", f.name, since(s.at), since(s.earliest), since(s.latest), since(f.ended), s.rule, off))
		}
	}
	slices.Sort(table)
	t.Logf("%d of %d forecasts certain\n%-30s %7s  %7s %7s  %7s\n%s", certain, sayings, "", "at", "from", "to", "ended", strings.Join(table, "\n"))
	if counted := readKernel().counter.Known(); counted && certain == 0 {
		t.Error("no forecast was certain")
	}
}

// A router that tells of every packet that the peer cannot be reached takes
// backoff back, again and again (RFC 6069). When that ends nobody knows.
func TestForecastUnreachable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	router, beyond := must(w.net.Router("router"))(t), must(w.net.Host("beyond"))(t)
	uplink, downlink := must(w.net.Connect(w.server, router))(t), must(w.net.Connect(router, beyond))(t)
	ok(t, w.server.RouteVia(uplink))
	ok(t, beyond.RouteVia(downlink))
	ok(t, w.server.SetSysctl("net.ipv4.tcp_retries2", "5"))
	ok(t, router.SetSysctl("net.ipv4.icmp_ratelimit", "0"))
	l := must(beyond.Listen(t.Context(), "tcp4", "0.0.0.0:0"))(t)
	defer func() { _ = l.Close() }()
	peer := downlink.IPv4(beyond)
	c := must(w.server.Dial(t.Context(), "tcp4", netip.AddrPortFrom(peer, l.Addr().(*net.TCPAddr).AddrPort().Port()).String()))(t)
	defer func() { _ = c.Close() }()
	ok(t, w.netlink(router).RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: peer.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_UNREACHABLE}))
	must(c.Write([]byte{1}))(t)
	seen := false
	wait(t, "the third retransmission, backoff taken back", func() bool {
		for c := range must(w.engine.Scan(t.Context(), w.request()))(t).All() {
			s := c.Sock
			if s.Retransmits == s.Backoff {
				continue
			}
			if f, known := c.Forecast(); known {
				t.Errorf("forecast %s to %s after %d retransmissions, with a backoff of %d", f.Earliest, f.Latest, s.Retransmits, s.Backoff)
			}
			seen = seen || s.Retransmits >= 3
		}
		return seen
	})
}

// Where the host retransmits for thin streams without backoff at first, the end
// of one is not told as if it did not.
func TestForecastThin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ok(t, w.server.SetSysctl("net.ipv4.tcp_thin_linear_timeouts", "1"))
	ok(t, w.server.SetSysctl("net.ipv4.tcp_retries2", "3"))
	far := w.connect("tcp4", w.far, 1)
	// BBR has no threshold of slow start, so that none of its streams is thin.
	control(t, w.servers[far[0]], func(fd int) { ok(t, unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")) })
	ok(t, w.toFar.Cut())
	must(w.servers[far[0]].Write([]byte{1}))(t)
	snap := must(w.engine.Scan(t.Context(), w.request()))(t)
	_, err := w.servers[far[0]].Read(make([]byte, 1))
	ended := time.Since(snap.TakenAt)
	if !errors.Is(err, unix.ETIMEDOUT) {
		t.Fatal(err)
	}
	if c := byPeer(snap)[far[0]]; c.Sock.Unacked != 1 {
		t.Fatalf("nothing is in flight: %+v", c.Sock)
	} else if f, known := c.Forecast(); known && (ended < f.Earliest || ended > f.Latest+1500*time.Millisecond) {
		t.Errorf("given up after %s, forecast %s to %s", ended, f.Earliest, f.Latest)
	}
}

func (w *world) scanFor(names map[uint16]string, found map[uint64]*foretold) {
	snap := must(w.engine.Scan(w.t.Context(), w.request()))(w.t)
	for c := range snap.All() {
		name, ours := names[c.Sock.LocalPort]
		if !ours {
			continue
		}
		f := found[c.Sock.Cookie]
		if f == nil {
			f = &foretold{name: name, sock: *c.Sock}
			found[c.Sock.Cookie] = f
		}
		forecast, known := c.Forecast()
		if !known || !forecast.GivesUp {
			if !f.ended.IsZero() {
				continue
			}
			w.t.Errorf("%s: forecast %v %+v of %+v", name, known, forecast, *c.Sock)
			continue
		}
		s := saying{at: snap.TakenAt, rule: forecast.Rule, earliest: snap.TakenAt.Add(forecast.Earliest), latest: snap.TakenAt.Add(forecast.Latest)}
		if forecast.Expected != 0 {
			s.expected = snap.TakenAt.Add(forecast.Expected)
		}
		f.said = append(f.said, s)
	}
}

// poll notes what has ended, and counts what has not.
func (w *world) poll(found map[uint64]*foretold) (left int) {
	d := must(sockdiag.Open(w.server.NS()))(w.t)
	defer func() { ok(w.t, d.Close()) }()
	var list []*foretold
	var socks []*conn.Sock
	now := time.Now()
	for _, f := range found {
		if f.ended.IsZero() {
			fresh := f.sock
			list, socks = append(list, f), append(socks, &fresh)
		}
	}
	ok(w.t, d.Lookup(socks, func(i int, err error) {
		switch {
		case errors.Is(err, sockdiag.ErrGone):
			list[i].ended = time.Now()
		default:
			ok(w.t, err)
			list[i].alive = now
			left++
		}
	}))
	return left
}
