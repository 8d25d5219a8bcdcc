package probe

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pid := int32(os.Getpid())
	closeWait := func() *pair {
		p := w.pair()
		ok(t, p.peer.CloseWrite())
		w.waitState(p, conn.CloseWait)
		return p
	}
	timeout, one, large, flight, other, checkpoint := closeWait(), closeWait(), closeWait(), closeWait(), w.pair(), w.pair()
	timeout.set(t, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5000)
	one.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 1)
	for _, p := range []*pair{timeout, one, flight} {
		p.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 7000)
	}
	w.unfresh(timeout, one, large, flight)
	ok(t, w.us.SetSysctl("net.ipv4.tcp_keepalive_time", "32768"))
	ok(t, w.link.Cut())
	must(flight.Write([]byte("lost")))(t)
	checkpoint.set(t, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)

	gone := w.target(other)
	gone.Owners[0].FD = 1 << 20
	ended := w.target(other)
	ended.Owners[0].PID = pidOfEnded(t)
	reused := w.target(other)
	reused.Owners[0].FD = int32(timeout.fd(t))
	file := w.target(other)
	file.Owners[0].FD = int32(must(os.Open("/dev/null"))(t).Fd())
	nobody := w.target(other)
	nobody.Owners = nil
	foreign := w.target(other)
	foreign.Owners = []conn.Owner{{PID: pid, FD: 1 << 20}, {PID: pid, FD: int32(timeout.fd(t))}, foreign.Owners[0]}

	for _, tt := range []struct {
		name   string
		target Target
		want   Refusal
	}{
		{"user timeout", w.target(timeout), UserTimeoutSet},
		{"one probe", w.target(one), ProbesExhausted},
		{"idle of the host beyond what can be set", w.target(large), ValuesOutOfRange},
		{"data in flight", w.target(flight), InFlight},
		{"checkpoint", w.target(checkpoint), Checkpoint},
		{"no such descriptor", gone, OwnerGone},
		{"no such process", ended, OwnerGone},
		{"another socket", reused, Reused},
		{"no socket", file, Reused},
		{"no owner", nobody, NoOwner},
		{"the third owner has it", foreign, NotRefused},
	} {
		r := w.ask(tt.target)[0]
		if r.Refusal != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, r.Refusal, tt.want)
		}
	}
	if v := must(unix.GetsockoptInt(checkpoint.fd(t), unix.IPPROTO_TCP, unix.TCP_REPAIR))(t); v != 1 {
		t.Errorf("the checkpoint was broken off: TCP_REPAIR is %d", v)
	}
	checkpoint.set(t, unix.IPPROTO_TCP, unix.TCP_REPAIR, -1)
	if v := large.options(t); v.idle != 32768 {
		t.Errorf("idle %d", v.idle)
	}
	for r := NotRefused + 1; r < refusalEnd; r++ {
		if r.Error() == "" {
			t.Errorf("refusal %d has no text", r)
		}
	}
}

func pidOfEnded(t *testing.T) int32 {
	t.Helper()
	cmd := command("hold")
	ok(t, cmd.Run())
	return int32(cmd.Process.Pid)
}

// An MPTCP connection's descriptor is not its subflow: it is never asked.
func TestMPTCP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(true)
	var l net.Listener
	ok(t, w.us.Do(func() (err error) {
		l, err = config.Listen(t.Context(), "tcp4", w.link.IPv4(w.us).String()+":0")
		return err
	}))
	defer func() { _ = l.Close() }()
	dialer := net.Dialer{KeepAlive: -1}
	dialer.SetMultipathTCP(true)
	var c net.Conn
	ok(t, w.peer.Do(func() (err error) {
		c, err = dialer.DialContext(t.Context(), "tcp4", l.Addr().String())
		return err
	}))
	defer func() { _ = c.Close() }()
	s := must(l.Accept())(t).(*net.TCPConn)
	defer func() { _ = s.Close() }()
	if multi, err := s.MultipathTCP(); err != nil || !multi {
		t.Skipf("this kernel speaks no MPTCP here: %v", err)
	}
	p := &pair{TCPConn: s}
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	before := p.mptcpReuse(t)
	found := false
	ok(t, w.diag.Dump(t.Context(), sockdiag.Query{}, func(k *conn.Sock, _ *sockdiag.Memory) error {
		if k.PeerPort != port {
			return nil
		}
		found = true
		r := w.ask(Target{ID: k.ID(), State: k.State, Owners: []conn.Owner{{PID: int32(os.Getpid()), FD: int32(p.fd(t))}}})[0]
		if r.Refusal != MPTCPSocket {
			t.Errorf("%+v", r)
		}
		return nil
	}))
	if !found {
		t.Error("the subflow was not listed")
	}
	if after := p.mptcpReuse(t); after != before {
		t.Errorf("SO_REUSEADDR %d, was %d", after, before)
	}
}

func (p *pair) mptcpReuse(t *testing.T) int {
	return must(unix.GetsockoptInt(p.fd(t), unix.SOL_SOCKET, unix.SO_REUSEADDR))(t)
}
