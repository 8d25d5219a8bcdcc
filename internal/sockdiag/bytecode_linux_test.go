package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/linux"
)

// TestKernelAgrees compares the kernel's answer to compiled filters with
// Match, over sockets of every kind in a network namespace of their own.
func TestKernelAgrees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			lab, err := newBytecodeLab()
			if err != nil {
				return err
			}
			defer lab.close()
			return lab.compare(t)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// bytecodeLab is a namespace with sockets, and a netlink socket to ask about
// them. It lives on one locked thread.
type bytecodeLab struct {
	diag  int
	open  []int
	socks map[uint64]conn.Sock
}

func newBytecodeLab() (lab *bytecodeLab, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	lab = &bytecodeLab{}
	if lab.diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG); err != nil {
		return nil, err
	}
	lab.open = append(lab.open, lab.diag)
	tv := unix.NsecToTimeval(int64(20 * time.Second))
	if err := errors.Join(unix.SetsockoptTimeval(lab.diag, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), lab.loopbackUp(), lab.populate()); err != nil {
		lab.close()
		return nil, err
	}
	return lab, nil
}

func (lab *bytecodeLab) close() {
	for _, fd := range lab.open {
		_ = unix.Close(fd)
	}
}

func (lab *bytecodeLab) loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func bytecodeSockaddr(a netip.AddrPort, v6 bool) unix.Sockaddr {
	if v6 {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func (lab *bytecodeLab) socket(v6 bool, local string) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil || local == "" {
		return fd, err
	}
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, bytecodeSockaddr(netip.MustParseAddrPort(local), v6)))
}

// populate makes listeners, bound sockets, connections of each family, marked
// and interface-bound ones, and some in other states.
func (lab *bytecodeLab) populate() error {
	for i, l := range []struct {
		v6     bool
		listen string
		dial   []string // local addresses of the clients
		via    bool     // clients are IPv6 sockets
	}{
		{false, "127.0.0.1:80", []string{"127.0.0.1:0", "127.0.0.2:4000", "127.1.2.3:65535", "127.0.0.9:1"}, false},
		{false, "127.0.0.5:443", []string{"127.0.0.1:0", "127.128.0.1:0"}, false},
		{true, "[::1]:80", []string{"[::1]:0", "[::1]:4001", "[::1]:0"}, true},
		{true, "[::]:5432", []string{"[::1]:0"}, true},
		{true, "[::ffff:127.0.0.7]:8080", []string{"[::ffff:127.0.0.8]:0", "[::ffff:127.3.0.1]:4002"}, true},
		{true, "[::ffff:127.0.0.6]:4000", []string{"127.0.0.6:0"}, false},
	} {
		ln, err := lab.socket(l.v6, l.listen)
		if err == nil {
			lab.open = append(lab.open, ln)
			err = unix.Listen(ln, 16)
		}
		if err != nil {
			return fmt.Errorf("listen on %s: %w", l.listen, err)
		}
		for j, local := range l.dial {
			if err := lab.connect(ln, l.via, local, l.listen, i+j); err != nil {
				return fmt.Errorf("connect %s to %s: %w", local, l.listen, err)
			}
		}
	}
	fd, err := lab.socket(true, "[::1]:9000") // bound only: inactive
	lab.open = append(lab.open, fd)
	return err
}

func (lab *bytecodeLab) connect(ln int, v6 bool, local, to string, variant int) error {
	fd, err := lab.socket(v6, local)
	if err != nil {
		return err
	}
	lab.open = append(lab.open, fd)
	if variant%2 == 1 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x10+variant); err != nil {
			return err
		}
	}
	if variant%3 == 1 {
		if err := unix.BindToDevice(fd, "lo"); err != nil {
			return err
		}
	}
	addr := netip.MustParseAddrPort(to)
	if addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
	}
	if !v6 {
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	}
	if err := unix.Connect(fd, bytecodeSockaddr(addr, v6)); err != nil {
		return err
	}
	if variant == 2 {
		return nil // the other end stays in the accept queue
	}
	peer, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	lab.open = append(lab.open, peer)
	if variant == 3 {
		return unix.Shutdown(fd, unix.SHUT_WR) // FIN-WAIT-2 and CLOSE-WAIT
	}
	if variant == 1 { // TIME-WAIT on our side
		return errors.Join(unix.Shutdown(fd, unix.SHUT_WR), unix.Shutdown(peer, unix.SHUT_WR))
	}
	return nil
}

// ask lists all sockets of both families that the program accepts.
func (lab *bytecodeLab) ask(code []byte, states conn.States) (map[uint64]conn.Sock, error) {
	found := map[uint64]conn.Sock{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := make([]byte, 16+56)
		binary.NativeEndian.PutUint16(req[4:], 20) // SOCK_DIAG_BY_FAMILY
		binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
		req[16], req[17] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(req[20:], uint32(states))
		if code != nil {
			req = binary.NativeEndian.AppendUint16(req, uint16(4+len(code)))
			req = binary.NativeEndian.AppendUint16(req, 1) // INET_DIAG_REQ_BYTECODE
			req = append(req, code...)
		}
		binary.NativeEndian.PutUint32(req, uint32(len(req)))
		if err := unix.Sendto(lab.diag, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, err
		}
		if err := lab.receive(found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (lab *bytecodeLab) receive(found map[uint64]conn.Sock) error {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(lab.diag, buf, 0)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		for msg := buf[:n]; len(msg) >= 16; {
			size := int(binary.NativeEndian.Uint32(msg))
			kind := binary.NativeEndian.Uint16(msg[4:])
			switch {
			case size < 16 || size > len(msg):
				return errors.New("malformed answer")
			case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
				if size >= 20 {
					if errno := int32(binary.NativeEndian.Uint32(msg[16:])); errno != 0 {
						return unix.Errno(-errno)
					}
				}
				return nil
			case size < 16+72:
				return errors.New("short answer")
			}
			s := bytecodeSock(msg[16:size])
			found[s.Cookie] = s
			msg = msg[min(len(msg), (size+3)&^3):]
		}
	}
}

// bytecodeSock reads struct inet_diag_msg and its attributes.
func bytecodeSock(m []byte) conn.Sock {
	s := conn.Sock{
		State: conn.State(m[1]), LocalPort: binary.BigEndian.Uint16(m[4:]), PeerPort: binary.BigEndian.Uint16(m[6:]),
		Interface: binary.NativeEndian.Uint32(m[40:]), Cookie: binary.NativeEndian.Uint64(m[44:]),
	}
	if m[0] == unix.AF_INET {
		s.Family = conn.IPv4
		s.LocalIP = netip.AddrFrom4([4]byte(m[8:])).As16()
		s.PeerIP = netip.AddrFrom4([4]byte(m[24:])).As16()
	} else {
		s.Family = conn.IPv6
		s.LocalIP, s.PeerIP = [16]byte(m[8:]), [16]byte(m[24:])
	}
	for a := m[72:]; len(a) >= 4; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < 4 || size > len(a) {
			break
		}
		switch kind := binary.NativeEndian.Uint16(a[2:]); {
		case kind == 15 && size >= 8: // INET_DIAG_MARK
			s.Mark = binary.NativeEndian.Uint32(a[4:])
		case kind == 21 && size >= 12: // INET_DIAG_CGROUP_ID
			s.CgroupID = binary.NativeEndian.Uint64(a[4:])
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s
}

// settle waits until no socket is between two states.
func (lab *bytecodeLab) settle() (err error) {
	const moving = conn.States(1<<conn.FinWait1 | 1<<conn.Closing | 1<<conn.LastAck | 1<<conn.SynReceived)
	for range 1000 {
		if lab.socks, err = lab.ask(nil, conn.AllStates); err != nil {
			return err
		}
		busy := false
		for _, s := range lab.socks {
			busy = busy || moving.Has(s.State)
		}
		if !busy {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("sockets keep changing their states")
}

func (lab *bytecodeLab) compare(t *testing.T) (err error) {
	if err := lab.settle(); err != nil {
		return err
	}
	have := map[string]int{}
	listsBound := !linux.Before(6, 8) // sockets that are bound and no more
	var cgroup uint64
	for _, s := range lab.socks {
		have[s.State.String()]++
		if s.CgroupID != 0 {
			cgroup = s.CgroupID
		}
		if s.Mark != 0 {
			have["mark"]++
		}
		if s.Family == conn.IPv6 && s.Peer().Addr().Is4In6() {
			have["mapped"]++
		}
		if s.Interface != 0 {
			have["bound to interface"]++
		}
	}
	for _, want := range []string{"ESTABLISHED", "LISTEN", "TIME-WAIT", "CLOSED", "FIN-WAIT-2", "CLOSE-WAIT", "mark", "mapped", "bound to interface"} {
		if have[want] == 0 && (want != "CLOSED" || listsBound) {
			return fmt.Errorf("no socket %s among %v", want, have)
		}
	}

	gen := bytecodeFilters{rnd: rand.New(rand.NewPCG(6, 18)), cgroup: cgroup}
	var programs, narrowed, exact int
	inBase := map[string]bool{}
	for i := range 400 {
		gen.pushable = i%2 == 0
		base := "all"
		if i%4 == 3 {
			base = gen.pick("closed", "bound-inactive", "listening", "bucket", "connected", "established", "fin-wait-2")
		}
		text := "state " + base + " " + gen.expr(4)
		f, err := conn.ParseFilter([]string{text}, conn.Resolver{})
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		// Old kernels refuse cgroups; without them the filter is not exact.
		has := conn.KernelSupport{Marks: true, Cgroups: cgroup != 0}
		k := f.Kernel(has)
		code, err := compile(k)
		if err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		if (k == nil) != (code == nil) {
			return fmt.Errorf("%s: %d bytes of program for %+v", text, len(code), k)
		}
		got, err := lab.ask(code, f.States())
		if err != nil {
			return fmt.Errorf("%s: program %x: %w", text, code, err)
		}
		if code != nil {
			programs++
		}
		if len(got) < len(lab.socks) {
			narrowed++
		}
		for cookie, s := range lab.socks {
			_, there := got[cookie]
			match := f.Match(&conn.Subject{Sock: &s})
			inBase[base] = inBase[base] || match == conn.Yes
			if match != conn.No && !there {
				now, err := lab.ask(nil, conn.AllStates)
				if err != nil {
					return err
				}
				if now[cookie].State != s.State { // a TIME-WAIT lasts a minute, which a busy machine may take
					delete(lab.socks, cookie)
					continue
				}
				t.Errorf("%s: kernel left out %v %v %v, which matches (%v)", text, s.State, s.Local(), s.Peer(), match)
			}
			if gen.pushable && match == conn.No && there {
				t.Errorf("%s: kernel let through %v %v %v", text, s.State, s.Local(), s.Peer())
			}
		}
		if gen.pushable {
			exact++
		}
	}
	if listsBound != inBase["bound-inactive"] || !inBase["bucket"] || !inBase["listening"] {
		t.Errorf("states without a match: %v", inBase)
	}
	if programs < 250 || narrowed < 150 || exact < 150 {
		t.Errorf("only %d programs, %d that narrowed, %d exact", programs, narrowed, exact)
	}
	t.Logf("%d sockets %v, %d programs, %d narrowed", len(lab.socks), have, programs, narrowed)
	return nil
}
