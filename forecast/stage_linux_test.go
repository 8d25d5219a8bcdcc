package forecast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/linux"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/testnet"
)

// stage is two hosts and a link for one case; us is the host whose kernel is
// forecast.
type stage struct {
	t        *testing.T
	in       forecast.Input
	us, peer *testnet.Host
	link     *testnet.Link

	ours, theirs *net.TCPConn
	zero         time.Time
	zeroMono     time.Duration // zero on CLOCK_MONOTONIC
	notYet       time.Time     // when what is waited for had not happened

	counter jiffies.Counter
	found   *forecast.Input // the connection as described after zero, if it was
	foundAt time.Duration   // on CLOCK_MONOTONIC
}

// has reports whether the kernel has the sysctl of TCP.
func has(name string) bool {
	_, err := os.Stat("/proc/sys/net/ipv4/" + name)
	return err == nil
}

// build makes the hosts, with the sysctls that the input says.
func (s *stage) build(world *testnet.Net, situation forecast.Situation) {
	t := s.t
	var err error
	s.us, err = world.Host("us")
	ok(t, err)
	s.peer, err = world.Host("peer")
	ok(t, err)
	s.link, err = world.Connect(s.us, s.peer)
	ok(t, err)
	set := func(name string, value int64) {
		if value != 0 && (value > 0 || has(name)) {
			ok(t, s.us.SetSysctl("net.ipv4."+name, strconv.FormatInt(max(0, value), 10)))
		}
	}
	set("tcp_retries2", int64(s.in.Retries2))
	if situation == forecast.SituationSynReceived {
		set("tcp_synack_retries", int64(s.in.SYNRetries))
	} else {
		set("tcp_syn_retries", int64(s.in.SYNRetries))
	}
	set("tcp_syn_linear_timeouts", int64(s.in.SYNLinear))
	set("tcp_orphan_retries", int64(s.in.OrphanRetries))
	set("tcp_fin_timeout", int64(s.in.FinTimeout/time.Second))
	set("tcp_rto_max_ms", s.in.RTOMax.Milliseconds())
	if situation == forecast.SituationSynReceived && linux.Before(6, 19) {
		s.in.RTOMax = 0
	}
	if s.in.NoLossProbe {
		ok(t, s.us.SetSysctl("net.ipv4.tcp_early_retrans", "0"))
	}
}

func (s *stage) address(h *testnet.Host) netip.Addr {
	if s.in.IPv6 {
		return s.link.IPv6(h)
	}
	return s.link.IPv4(h)
}

// converse sets up a connection between the hosts with the input's policy.
func (s *stage) converse() {
	l, err := s.peer.Listen(s.t.Context(), "tcp", netip.AddrPortFrom(s.address(s.peer), 0).String())
	ok(s.t, err)
	defer func() { ok(s.t, l.Close()) }()
	raw, err := l.SyscallConn()
	ok(s.t, err)
	// A window that is small from the start can be filled without losses.
	ok(s.t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8192) }))
	ok(s.t, err)
	s.ours, err = s.us.Dial(s.t.Context(), "tcp", l.Addr().String())
	ok(s.t, err)
	s.theirs, err = l.AcceptTCP()
	ok(s.t, err)
	s.t.Cleanup(func() { _, _ = s.ours.Close(), s.theirs.Close() })
	s.setPolicy(s.ours)
}

// setPolicy sets the options one by one: what the policy betrays is the case.
func (s *stage) setPolicy(c *net.TCPConn) {
	p := s.in.Policy
	s.onFD(c, func(fd int) error {
		for _, o := range []struct{ name, value int }{
			{unix.TCP_KEEPIDLE, int(p.Idle / time.Second)}, {unix.TCP_KEEPINTVL, int(p.Interval / time.Second)},
			{unix.TCP_KEEPCNT, p.Probes}, {unix.TCP_USER_TIMEOUT, int(p.UserTimeout / time.Millisecond)},
			{unix.TCP_LINGER2, int(s.in.Linger2 / time.Second)},
		} {
			if o.value == 0 {
				continue
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_TCP, o.name, o.value); err != nil {
				return err
			}
		}
		if s.in.KeepAlive {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		}
		return nil
	})
}

func (s *stage) onFD(c *net.TCPConn, f func(fd int) error) {
	s.t.Helper()
	raw, err := c.SyscallConn()
	ok(s.t, err)
	var inner error
	ok(s.t, raw.Control(func(fd uintptr) { inner = f(int(fd)) }))
	ok(s.t, inner)
}

func (s *stage) info(c *net.TCPConn) (info unix.TCPInfo) {
	s.onFD(c, func(fd int) error {
		i, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err == nil {
			info = *i
		}
		return err
	})
	return info
}

// exchange has a byte arrive at ours, as the last segment from the peer.
func (s *stage) exchange() {
	_, err := s.theirs.Write([]byte("x"))
	ok(s.t, err)
	_, err = io.ReadFull(s.ours, make([]byte, 1))
	ok(s.t, err)
	s.now()
}

// now makes this moment the one that the forecast counts from.
func (s *stage) now() {
	s.zero, s.zeroMono = time.Now(), jiffies.Monotonic()
}

// fromHeard makes the last segment from the peer, by the kernel's count, the
// moment that the forecast counts from.
func (s *stage) fromHeard() {
	s.now() // before it is read: a busy machine makes the end late, never early
	i := s.info(s.ours)
	ago := time.Duration(min(i.Last_ack_recv, i.Last_data_recv)) * time.Millisecond
	s.zero, s.zeroMono = s.zero.Add(-ago), s.zeroMono-ago
}

// measureRTO takes the round trip and the timeout from the kernel.
func (s *stage) measureRTO() {
	i := s.info(s.ours)
	s.in.RTT, s.in.RTO = time.Duration(i.Rtt)*time.Microsecond, time.Duration(i.Rto)*time.Microsecond
}

func (s *stage) write() {
	s.measureRTO()
	s.now()
	const segment = 1400
	_, err := s.ours.Write(make([]byte, segment*max(1, s.in.Packets)))
	ok(s.t, err)
	if n := int(s.info(s.ours).Unacked); n != max(1, s.in.Packets) {
		s.t.Fatalf("%d segments in flight", n)
	}
}

// fill writes until the peer's window is shut, and counts from then.
func (s *stage) fill() {
	data := make([]byte, 64<<10)
	s.until("a shut window", func() bool {
		s.onFD(s.ours, func(fd int) error {
			if _, err := unix.Write(fd, data); !errors.Is(err, unix.EAGAIN) {
				return err
			}
			return nil
		})
		i := s.info(s.ours)
		return i.Unacked == 0 && i.Notsent_bytes > 0 && i.Last_ack_recv >= 20
	})
	s.measureRTO()
	s.fromHeard()
}

// until polls, and notes when it did so in vain for the last time: what a busy
// machine has us see late happened after that.
func (s *stage) until(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		now := time.Now()
		if done() {
			return
		}
		if s.notYet = now; now.After(end) {
			s.t.Fatalf("waited too long for %s", what)
		}
	}
}

const tcpClose = 7

// death waits until a socket that a program holds is closed, and tells the
// errno.
func (s *stage) death() string {
	s.until("the end of the connection", func() bool { return s.info(s.ours).State == tcpClose })
	errno := ""
	s.onFD(s.ours, func(fd int) error {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			errno = unix.ErrnoName(unix.Errno(n))
		}
		return err
	})
	return errno
}

// gone waits until our host has no connection left, held or not.
func (s *stage) gone() string {
	c, list := s.sockets()
	defer func() { ok(s.t, c.Close()) }()
	s.until("the end of the socket", func() bool {
		left := false
		ok(s.t, c.Lookup(list, func(_ int, err error) {
			if !errors.Is(err, sockdiag.ErrGone) {
				ok(s.t, err)
				left = true
			}
		}))
		return !left
	})
	return ""
}

// sockets lists the connections of our host.
func (s *stage) sockets() (c *sockdiag.Conn, list []*conn.Sock) {
	c, err := sockdiag.Open(s.us.NS())
	ok(s.t, err)
	ok(s.t, c.Dump(s.t.Context(), sockdiag.Query{}, func(sock *conn.Sock, _ *sockdiag.Memory) error {
		one := *sock
		list = append(list, &one)
		return nil
	}))
	return c, list
}

// loseNeighbour takes the peer's address from it, and what we know of it.
func (s *stage) loseNeighbour() {
	del := func(h *testnet.Host, f func(link netlink.Link) error) {
		name, _ := s.link.Interface(h)
		ok(s.t, h.Do(func() error {
			dev, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return f(dev)
		}))
	}
	family := netlink.FAMILY_V4
	if s.in.IPv6 {
		family = netlink.FAMILY_V6
	}
	gone := s.address(s.peer)
	del(s.peer, func(dev netlink.Link) error {
		list, err := netlink.AddrList(dev, family)
		for i := range list {
			if list[i].IP.Equal(gone.AsSlice()) {
				return netlink.AddrDel(dev, &list[i])
			}
		}
		return fmt.Errorf("no address %v: %w", gone, err)
	})
	del(s.us, func(dev netlink.Link) error {
		return netlink.NeighDel(&netlink.Neigh{LinkIndex: dev.Attrs().Index, Family: family, IP: gone.AsSlice()})
	})
}

// connect tries to connect to addr, and tells the errno of the end.
func (s *stage) connect(addr netip.AddrPort) string {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	domain := unix.AF_INET6
	if addr.Addr().Is4() {
		sa, domain = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, unix.AF_INET
	}
	var fd int
	ok(s.t, s.us.Do(func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer func() { _ = unix.Close(fd) }()
	ok(s.t, unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(s.in.Policy.UserTimeout/time.Millisecond)))
	s.now()
	if err := unix.Connect(fd, sa); !errors.Is(err, unix.EINPROGRESS) {
		s.t.Fatalf("connect: %v", err)
	}
	s.until("the end of connecting", func() bool {
		i, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		ok(s.t, err)
		return i.State == tcpClose
	})
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	ok(s.t, err)
	return unix.ErrnoName(unix.Errno(n))
}

// half has the peer begin a connection that it then forgets.
func (s *stage) half() {
	l, err := s.us.Listen(s.t.Context(), "tcp", netip.AddrPortFrom(s.address(s.us), 0).String())
	ok(s.t, err)
	s.t.Cleanup(func() { _ = l.Close() })
	ok(s.t, s.link.CutOneWay(s.us))
	ctx, cancel := context.WithCancel(s.t.Context())
	dialled := make(chan struct{})
	s.now()
	go func() {
		defer close(dialled)
		if c, err := s.peer.Dial(ctx, "tcp", l.Addr().String()); err == nil {
			_ = c.Close()
		}
	}()
	s.until("a half-open connection", func() bool {
		c, list := s.sockets()
		ok(s.t, c.Close())
		return len(list) > 0
	})
	ok(s.t, s.link.Cut())
	cancel()
	<-dialled
}
