package bpf

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/netns"
	"deadpeer/internal/sockdiag"
)

// What sock_diag tells of a connection in any state, BPF tells.
func TestConnectionsAsSockDiag(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := must(OpenSockets(SocketsOptions{NoPin: true}))(t)
	t.Cleanup(func() { ok(t, s.Close()) })
	want := w.diversify()
	deadline := time.Now().Add(20 * time.Second)
	for {
		states, timers := map[conn.State]int{}, map[conn.Timer]int{}
		bad := ""
		for _, ns := range []*netns.NS{w.server.NS(), w.peer.NS()} {
			start := time.Now()
			before := w.dump(ns)
			got := map[uint64]conn.Sock{}
			ok(t, s.Connections(t.Context(), ns, nil, func(r *Record) error {
				got[r.Sock.Cookie] = r.Sock
				return nil
			}))
			after := w.dump(ns)
			slack := time.Since(start) + 100*time.Millisecond
			for cookie, d := range before {
				if a, still := after[cookie]; !still || !alike(d, a, slack) {
					continue // it changes just now
				}
				states[d.State]++
				timers[d.Timer]++
				if b := got[cookie]; !alike(d, b, slack) {
					bad += "\n" + d.Peer().String() + " " + d.State.String()
					t.Logf("sock_diag %+v", d)
					t.Logf("BPF       %+v", b)
				}
			}
			for cookie, b := range got {
				if before[cookie].Cookie == 0 && after[cookie].Cookie != 0 && b.State != conn.TimeWait {
					bad += "\n" + b.Peer().String() + " only by BPF"
				}
			}
		}
		missing := ""
		for _, state := range want {
			if states[state] == 0 {
				missing += " " + state.String()
			}
		}
		for timer := conn.TimerNone; timer <= conn.TimerPersist; timer++ {
			if timers[timer] == 0 {
				missing += " " + timer.String()
			}
		}
		switch {
		case bad == "" && missing == "":
			return
		case time.Now().After(deadline):
			t.Fatalf("different: %s\nmissing: %s", bad, missing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// alike compares two descriptions of a socket, made within a time.
func alike(a, b conn.Sock, within time.Duration) bool {
	near := func(x, y *uint32) bool {
		d := time.Duration(int32(*x-*y)) * time.Millisecond
		*x, *y = 0, 0
		return d.Abs() <= within
	}
	return near(&a.TimerMS, &b.TimerMS) && near(&a.LastDataSent, &b.LastDataSent) && near(&a.LastDataRecv, &b.LastDataRecv) &&
		near(&a.LastAckRecv, &b.LastAckRecv) && a == b
}

func (w *world) dump(ns *netns.NS) map[uint64]conn.Sock {
	w.t.Helper()
	diag := must(sockdiag.Open(ns))(w.t)
	defer func() { ok(w.t, diag.Close()) }()
	m := map[uint64]conn.Sock{}
	ok(w.t, diag.Dump(w.t.Context(), sockdiag.Query{}, func(s *conn.Sock, _ *sockdiag.Memory) error {
		m[s.Cookie] = *s
		return nil
	}))
	return m
}

// diversify makes connections in many states, and tells which. In the end the
// server is not heard any more.
func (w *world) diversify() []conn.State {
	w.t.Helper()
	for i, p := range append(w.connect("tcp4", 8), w.connect("tcp6", 8)...) {
		setOpt(w.t, p.server, unix.SOL_SOCKET, unix.SO_MARK, i)
		switch i % 8 {
		case 0:
			setOpt(w.t, p.client, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		case 1:
			ok(w.t, p.client.CloseWrite()) // FIN-WAIT-2, CLOSE-WAIT
		case 2:
			ok(w.t, p.client.Close()) // the same without an owner
		case 3:
			ok(w.t, p.client.Close())
			ok(w.t, p.server.Close()) // TIME-WAIT
		case 4: // the window shuts
			ok(w.t, p.server.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
			_, _ = p.server.Write(make([]byte, 16<<20))
		case 5:
			_, err := p.server.Write(make([]byte, 1000)) // unread
			ok(w.t, err)
		}
	}
	l := must(w.server.Listen(w.t.Context(), "tcp4", "0.0.0.0:0"))(w.t)
	w.t.Cleanup(func() { _ = l.Close() })
	late := append(w.connect("tcp4", 2), w.connect("tcp6", 2)...)
	time.Sleep(300 * time.Millisecond) // for the first acknowledgements
	ok(w.t, w.link.CutOneWay(w.server))
	for i, p := range late {
		if i%2 == 0 {
			_, err := p.server.Write([]byte("x")) // in flight
			ok(w.t, err)
		} else {
			ok(w.t, p.server.Close()) // FIN-WAIT-1
		}
	}
	w.begin(netip.AddrPortFrom(w.link.IPv4(w.server), l.Addr().(*net.TCPAddr).AddrPort().Port()))
	return []conn.State{
		conn.Established, conn.SynSent, conn.SynReceived, conn.FinWait1, conn.FinWait2, conn.TimeWait, conn.CloseWait,
	}
}

// begin begins to connect from the peer, and does not wait.
func (w *world) begin(to netip.AddrPort) {
	w.t.Helper()
	ok(w.t, w.peer.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != unix.EINPROGRESS {
			return err
		}
		return nil
	}))
}
