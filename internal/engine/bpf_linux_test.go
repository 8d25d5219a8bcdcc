package engine

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
)

// needBPF skips where programs cannot be loaded.
func needBPF(t *testing.T) {
	t.Helper()
	s, err := bpf.OpenSockets(bpf.SocketsOptions{NoPin: true})
	if err == nil {
		err = s.Close()
	}
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// By BPF and by procfs with pidfd_getfd every socket shows the same owners and
// settings.
func TestBothTransports(t *testing.T) {
	t.Parallel()
	needBPF(t)
	w := newWorld(t)
	peers := append(w.connect("tcp4", w.near, 60), w.connect("tcp6", w.near, 60)...)
	w.diversify()
	peers = append(peers, w.connect("tcp4", w.near, 90)...) // with the host's settings
	peers = append(peers, w.connect("tcp6", w.near, 90)...)
	for i, p := range peers {
		s := w.servers[p]
		switch i % 10 {
		case 0: // another descriptor
			f := must(s.File())(t)
			t.Cleanup(func() { _ = f.Close() })
		case 1: // another process
			f := must(s.File())(t)
			child := exec.CommandContext(t.Context(), "sleep", "300")
			child.ExtraFiles = []*os.File{f, f}
			ok(t, child.Start())
			t.Cleanup(func() { _, _ = child.Process.Kill(), child.Wait() })
			if i%20 == 1 { // that process alone
				ok(t, s.Close())
				delete(w.servers, p)
			}
			ok(t, f.Close())
		case 2:
			setOpt(t, s, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000*i)
		case 3: // both directions are closed, one after the other
			ok(t, s.CloseWrite())
			if i%20 == 3 {
				ok(t, w.clients[p].CloseWrite())
			}
		case 4: // CLOSE-WAIT
			ok(t, w.clients[p].CloseWrite())
		}
	}
	// No descriptor: the listener does not accept.
	l := must(w.server.Listen(t.Context(), "tcp4", "0.0.0.0:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	queued := must(w.near.Dial(t.Context(), "tcp4", reached(w.toNear.IPv4(w.server), l).String()))(t)
	t.Cleanup(func() { _ = queued.Close() })
	w.connectMPTCP()

	r := w.filtered("state all")
	r.Settings = true
	scan := func(noBPF bool) map[conn.ID]Connection {
		snap := must(New(Options{RuntimeDir: w.dir, NoBPF: noBPF}).Scan(t.Context(), r))(t)
		if how := strings.Join(snap.How, "\n"); strings.Contains(how, "by BPF, ") == noBPF || strings.Contains(how, "owners by BPF") == noBPF || strings.Contains(how, "in /proc") != noBPF {
			t.Errorf("NoBPF %v: %s", noBPF, how)
		}
		m := map[conn.ID]Connection{}
		for c := range snap.All() {
			kept := *c
			kept.Owners = slices.Clone(c.Owners)
			m[c.Sock.ID()] = kept
		}
		return m
	}
	by, without := scan(false), scan(true)
	if len(by) != len(without) || len(by) < len(peers) {
		t.Errorf("%d connections, without BPF %d, want at least %d", len(by), len(without), len(peers))
	}
	origins, multipath := map[Origin]int{}, 0
	for id, c := range by {
		o := without[id]
		if len(o.Owners) == 0 || o.Sock.MPTCP { // without a descriptor of its own the settings show only by BPF
			o.Known, o.Settings, o.KeepAliveKnown = c.Known, c.Settings, c.KeepAliveKnown
		}
		if !slices.Equal(c.Owners, o.Owners) || c.Known != o.Known || c.Settings != o.Settings || c.KeepAliveKnown != o.KeepAliveKnown {
			t.Errorf("%s %s %s: %v %v %+v, without BPF %v %v %+v", id, c.Sock.State, c.Sock.Peer(), c.Owners, c.Known, c.Settings, o.Owners, o.Known, o.Settings)
		}
		if c.Known != (c.Origin != OriginUnknown) || o.Origin != OriginUnknown {
			t.Errorf("%s: known %v, origin %q, without BPF %q", id, c.Known, c.Origin, o.Origin)
		}
		origins[c.Origin]++
		if c.Sock.MPTCP && len(c.Owners) > 0 {
			multipath++
		}
	}
	if origins[OriginProgram] < 50 || origins[OriginHost] < 50 {
		t.Errorf("origins %v", origins)
	}
	if multipath == 0 && haveMPTCP() {
		t.Error("no subflow has an owner")
	}
}

func haveMPTCP() bool {
	_, err := os.Stat("/proc/sys/net/mptcp/enabled")
	return err == nil
}

// connectMPTCP makes one connection that speaks MPTCP, where the kernel can.
func (w *world) connectMPTCP() {
	w.t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	var l net.Listener
	ok(w.t, w.server.Do(func() (err error) {
		l, err = config.Listen(w.t.Context(), "tcp4", "0.0.0.0:0")
		return err
	}))
	w.t.Cleanup(func() { _ = l.Close() })
	dialer := net.Dialer{Timeout: 10 * time.Second}
	dialer.SetMultipathTCP(true)
	var c net.Conn
	ok(w.t, w.near.Do(func() (err error) {
		c, err = dialer.DialContext(w.t.Context(), "tcp4", reached(w.toNear.IPv4(w.server), l).String())
		return err
	}))
	s := must(l.Accept())(w.t)
	w.t.Cleanup(func() { _, _ = c.Close(), s.Close() })
}
