package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/testnet"
)

func linger(t testing.TB, fd int) (l unix.Linger) {
	t.Helper()
	n := uint32(unsafe.Sizeof(l))
	if errno := getsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&l), &n); errno != 0 {
		t.Fatal(errno)
	}
	return l
}

// diversify gives a socket one of many sets of options.
func (w *world) diversify(n int, p *pair) {
	p.set(w.t, unix.SOL_SOCKET, unix.SO_REUSEADDR, n&1)
	p.set(w.t, unix.SOL_SOCKET, unix.SO_KEEPALIVE, n>>1&1)
	if n&4 != 0 {
		p.set(w.t, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1000+n)
		p.set(w.t, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10+n)
		p.set(w.t, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5+n)
	}
	if n&8 != 0 {
		ok(w.t, unix.SetsockoptLinger(p.fd(w.t), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(30 + n)}))
	}
	if n&16 != 0 {
		p.set(w.t, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 600_000+n)
	}
}

// Connections that are asked again and again, idle ones and ones with data
// flowing both ways, keep their options, their timers and their data.
func TestUntouched(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const kinds = 32
	var busy, idle []*pair
	for n := range kinds {
		p, q := w.pair(), w.pair()
		w.diversify(n, p)
		w.diversify(n, q)
		busy, idle = append(busy, p), append(idle, q)
	}
	all := append(append([]*pair{}, busy...), idle...)
	before := make([]options, len(all))
	expiries := make([]expiry, len(all))
	targets := make([]Target, len(all))
	for i, p := range all {
		before[i], expiries[i], targets[i] = p.options(t), w.expiry(p), w.target(p)
	}
	stop := make(chan struct{})
	streams := make(chan error)
	for i, p := range busy {
		for side, ends := range [][2]*net.TCPConn{{p.TCPConn, p.peer}, {p.peer, p.TCPConn}} {
			go func() { streams <- stream(ends[0], ends[1], uint64(2*i+side), stop) }()
		}
	}
	answers := make([]bool, len(all))
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for i, r := range w.ask(targets...) {
			if r.Refusal != NotRefused || r.Ended || r.Method != WindowProbe || r.At.IsZero() {
				t.Fatalf("%+v: %+v", before[i], r)
			}
			targets[i].Reuses = r.Reuses
			answers[i] = answers[i] || w.read(all[i]).SegsIn != r.SegsIn
		}
	}
	ok(t, w.asker.Flush())
	close(stop)
	for range 2 * len(busy) {
		if err := <-streams; err != nil {
			t.Error(err)
		}
	}
	for i, p := range all {
		if now := p.options(t); now != before[i] {
			t.Errorf("options %+v, were %+v", now, before[i])
		}
		if !answers[i] {
			t.Errorf("%+v: never answered", before[i])
		}
		if i < len(busy) {
			continue
		}
		if now := w.expiry(p); !now.sameAs(expiries[i]) {
			t.Errorf("timer %+v, was %+v", now, expiries[i])
		}
		if s := w.read(p); s.Probes != 0 || s.Backoff != 0 || s.Retransmits != 0 || s.LastDataRecv != s.LastDataSent && s.LastDataRecv < 1000 {
			t.Errorf("%+v", s)
		}
	}
}

// stream sends random bytes until stop and makes sure that they arrive.
func stream(from, to *net.TCPConn, seed uint64, stop <-chan struct{}) error {
	received := make(chan error, 1)
	total := make(chan int64, 1)
	source := func() io.Reader { return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}) }
	go func() {
		want, got := source(), int64(0)
		expected, buf := make([]byte, 4096), make([]byte, 4096)
		all := int64(-1)
		for all < 0 || got < all {
			_ = to.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := to.Read(buf)
			_, _ = want.Read(expected[:n])
			if got += int64(n); !bytes.Equal(buf[:n], expected[:n]) {
				received <- fmt.Errorf("stream %d: other bytes arrived than were sent, before offset %d", seed, got)
				return
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				received <- fmt.Errorf("stream %d: %w", seed, err)
				return
			}
			select {
			case all = <-total:
			default:
			}
		}
		received <- nil
	}()
	r, sent, buf := source(), int64(0), make([]byte, 700)
	for {
		select {
		case err := <-received:
			return err
		case <-stop:
			total <- sent
			return <-received
		case <-time.After(3 * time.Millisecond):
		}
		_, _ = r.Read(buf)
		n, err := from.Write(buf)
		if sent += int64(n); err != nil {
			return fmt.Errorf("stream %d: %w", seed, err)
		}
	}
}

// A window probe goes out, and is answered, 20 ms after data, with data in
// flight, and while the peer's window is shut. It is one segment without data
// whose sequence number is one below what the peer expects.
func TestWindowProbeSituations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	record := must(w.link.Record())(t)
	once := func(name string, p *pair, port uint16, answer bool) {
		t.Helper()
		before := w.read(p)
		asked := time.Now()
		r := w.ask(w.target(p))[0]
		if r.Refusal != NotRefused || r.Method != WindowProbe {
			t.Fatalf("%s: %+v", name, r)
		}
		if answer && !w.answered(p, r) {
			t.Errorf("%s: no answer", name)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		question, err := record.Wait(ctx, func(s testnet.Segment) bool {
			return s.From == w.us && s.Dst.Port() == port && s.Payload == 0 && !s.Time.Before(asked)
		})
		if err != nil {
			t.Fatalf("%s: nothing without data went out: %v", name, err)
		}
		var acknowledged uint32
		for _, s := range record.Segments() {
			if s.From == w.peer && s.Src.Port() == port && s.Time.Before(question.Time) {
				acknowledged = s.Ack
			}
		}
		if question.Seq != acknowledged-1 || question.Flags != testnet.ACK {
			t.Errorf("%s: %v, the peer expects %d", name, question, acknowledged)
		}
		after := w.read(p)
		if after.SegsOut == before.SegsOut || after.Unacked != before.Unacked || after.SendQueue != before.SendQueue || after.Timer != before.Timer {
			t.Errorf("%s: before %+v\nafter %+v", name, before, after)
		}
	}
	port := func(p *pair) uint16 { return p.sock.PeerPort }

	fresh := w.pair()
	must(fresh.Write([]byte("x")))(t)
	must(fresh.peer.Read(make([]byte, 1)))(t)
	time.Sleep(20 * time.Millisecond)
	once("20 ms after data", fresh, port(fresh), true)

	shut := w.pair()
	_ = shut.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	for {
		if _, err := shut.Write(make([]byte, 1<<16)); err != nil {
			break
		}
	}
	for {
		if s := w.read(shut); s.Timer == conn.TimerPersist && s.Unacked == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	// The kernel probes the window too, and the peer answers one in 500 ms.
	time.Sleep(600 * time.Millisecond)
	once("window shut", shut, port(shut), true)

	flight := w.pair()
	ok(t, w.link.Cut())
	must(flight.Write([]byte("lost")))(t)
	once("data in flight, link cut", flight, port(flight), false)
	ok(t, w.link.Heal())
	if s := w.read(flight); s.Unacked == 0 {
		t.Error("no data is in flight")
	}
}

// The keepalive way is used where a window probe sends nothing. It too leaves
// the options as they were, and the timer to fire an idle time after the last
// segment heard, as by itself.
func TestFallBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var pairs []*pair
	var want []conn.State
	for n := range 16 {
		p := w.pair()
		w.diversify(n, p)
		state := conn.CloseWait
		if n%3 == 0 {
			state = conn.FinWait2
			ok(t, p.CloseWrite())
		} else {
			ok(t, p.peer.CloseWrite())
		}
		pairs, want = append(pairs, p), append(want, state)
	}
	for i, p := range pairs {
		w.waitState(p, want[i])
	}
	fresh := w.target(pairs[0])
	if r := w.ask(fresh)[0]; r.Refusal != TooFresh || !r.Refusal.Passing() {
		t.Errorf("%+v, want too fresh", r)
	}
	w.unfresh(pairs...)
	before := make([]options, len(pairs))
	targets := make([]Target, len(pairs))
	for i, p := range pairs {
		before[i], targets[i] = p.options(t), w.target(p)
		if i%2 == 0 { // what was listed may be out of date
			targets[i].State = conn.Established
		}
	}
	for i, r := range w.ask(targets...) {
		p := pairs[i]
		if r.Refusal != NotRefused || r.Method != Keepalive || r.State != want[i] || !r.Known {
			t.Errorf("%s: %+v", want[i], r)
		} else if !w.answered(p, r) {
			t.Errorf("%s: no answer", want[i])
		}
		if now := p.options(t); now != before[i] {
			t.Errorf("%s: options %+v, were %+v", want[i], now, before[i])
		}
		if now, natural := w.expiry(p), w.natural(p, before[i]); !now.sameAs(natural) {
			t.Errorf("%s: %+v: timer %+v, want %+v", want[i], before[i], now, natural)
		}
		if s := w.read(p); s.Probes != 0 || s.State != want[i] {
			t.Errorf("%s: %+v", want[i], s)
		}
	}
}

// A peer that does not answer is asked by keepalive only for as long as the
// kernel's own count cannot end the connection.
func TestFallBackStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	on, off := w.pair(), w.pair()
	for _, p := range []*pair{on, off} {
		p.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4)
		ok(t, p.peer.CloseWrite())
		w.waitState(p, conn.CloseWait)
	}
	on.set(t, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	ok(t, w.link.Cut())
	w.unfresh(on, off)
	for _, p := range []*pair{on, off} {
		var refusal Refusal
		asked := 0
		for range 10 {
			if refusal = w.ask(w.target(p))[0].Refusal; refusal != NotRefused {
				break
			}
			asked++
			time.Sleep(5 * time.Millisecond)
		}
		if refusal != ProbesExhausted || asked != 3 {
			t.Errorf("asked %d times, then %q", asked, refusal)
		}
		if s := w.read(p); s.Probes != 3 || s.State != conn.CloseWait {
			t.Errorf("%+v", s)
		}
	}
}

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
	timeout, one, large, flight, other := closeWait(), closeWait(), closeWait(), closeWait(), w.pair()
	timeout.set(t, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5000)
	one.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 1)
	for _, p := range []*pair{timeout, one, flight} {
		p.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 7000)
	}
	w.unfresh(timeout, one, large, flight)
	ok(t, w.us.SetSysctl("net.ipv4.tcp_keepalive_time", "32768"))
	ok(t, w.link.Cut())
	must(flight.Write([]byte("lost")))(t)

	checkpoint := w.pair2(t)
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

// pair2 is pair although the link is cut.
func (w *world) pair2(t *testing.T) *pair {
	t.Helper()
	ok(t, w.link.Heal())
	p := w.pair()
	ok(t, w.link.Cut())
	return p
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

// Our duplicate may turn out to be the last, with data that nobody takes and
// SO_LINGER: closing it does not keep us waiting.
func TestLingerNeverBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pair()
	const lingers = 60
	ok(t, unix.SetsockoptLinger(p.fd(t), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: lingers}))
	ok(t, w.link.Cut())
	must(p.Write([]byte("nobody takes it")))(t)
	target := w.target(p)
	w.asker.options.Step = func(s Step) {
		if s == StepAsked {
			ok(t, p.Close())
		}
	}
	start := time.Now()
	if r := w.ask(target)[0]; r.Refusal != NotRefused {
		t.Errorf("%+v", r)
	}
	w.asker.options.Step = nil
	ok(t, w.asker.Close())
	if took := time.Since(start); took > lingers*time.Second/2 {
		t.Errorf("took %s", took)
	}
	// The data is still on its way: the socket has not been reset.
	wait := time.Now().Add(10 * time.Second)
	for w.read(p).State != conn.FinWait1 {
		if time.Now().After(wait) {
			t.Fatalf("%+v", w.read(p))
		}
		time.Sleep(time.Millisecond)
	}
}

// Sockets that several processes hold are asked once, through whichever holds
// them still.
func TestShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, q := w.pair(), w.pair()
	for _, p := range []*pair{p, q} {
		p.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	before := p.options(t)
	first, stopFirst, _ := start(t, "hold", p, q)
	second, _, _ := start(t, "hold", p, q)
	target := w.target(p)
	target.Owners = []conn.Owner{{PID: first, FD: 3}, {PID: second, FD: 3}, target.Owners[0]}
	other := w.target(q)
	other.Owners = []conn.Owner{{PID: second, FD: 4}, {PID: first, FD: 4}}
	ask := func() {
		t.Helper()
		for _, r := range w.ask(target, other) {
			if r.Refusal != NotRefused || !r.Reuses {
				t.Errorf("%+v", r)
			}
		}
		for _, p := range []*pair{p, q} {
			if now := p.options(t); now != before {
				t.Errorf("options %+v, were %+v", now, before)
			}
		}
	}
	ask()
	stopFirst()
	ask()
	// Closed here, it lives in the other process.
	ok(t, q.Close())
	ask2 := w.ask(other)[0]
	if ask2.Refusal != NotRefused {
		t.Errorf("%+v", ask2)
	}
}

// Nothing is changed, and a socket that would be is not asked, when the
// journal cannot be written.
func TestJournalFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p, q := w.pair(), w.pair()
	p.set(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	ok(t, q.peer.CloseWrite())
	w.waitState(q, conn.CloseWait)
	w.unfresh(q)
	w.ledger.err = errors.New("disk full")
	before := []conn.Sock{w.read(p), w.read(q)}
	was := []options{p.options(t), q.options(t)}
	for i, r := range w.ask(w.target(p), w.target(q)) {
		now := w.read([]*pair{p, q}[i])
		if r.Refusal != JournalFailed || now.SegsOut != before[i].SegsOut {
			t.Errorf("%+v, %d segments sent", r, now.SegsOut-before[i].SegsOut)
		}
		if o := []*pair{p, q}[i].options(t); o != was[i] {
			t.Errorf("options %+v, were %+v", o, was[i])
		}
	}
	w.ledger.err = nil
}

// What the program sets while it is being asked is not overwritten.
func TestProgramChangesItsOptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	earlier, later := w.pair(), w.pair()
	for _, p := range []*pair{earlier, later} {
		ok(t, p.peer.CloseWrite())
		w.waitState(p, conn.CloseWait)
	}
	w.unfresh(earlier, later)
	w.asker.options.Step = func(s Step) {
		switch s {
		case StepJournalled:
			earlier.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 111)
		case StepAsked:
			later.set(t, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 22)
		}
	}
	results := w.ask(w.target(earlier), w.target(later))
	w.asker.options.Step = nil
	if results[0].Refusal != ChangedMeanwhile || results[1].Refusal != NotRefused {
		t.Errorf("%+v", results)
	}
	if o := earlier.options(t); o.idle != 111 || o.interval != 75 || o.probes != 9 || o.keepalive != 0 {
		t.Errorf("%+v", o)
	}
	if o := later.options(t); o.idle != 7200 || o.interval != 22 || o.probes != 9 || o.keepalive != 0 {
		t.Errorf("%+v", o)
	}
}

// A reset socket that its program still holds is told from a lost one, and one
// that the kernel gave up by the segments it has received.
func TestEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pair()
	target := w.target(p)
	if _, ended := w.asker.Ended(target); ended {
		t.Error("ended while it lives")
	}
	before := w.read(p)
	ok(t, p.peer.SetLinger(0))
	ok(t, p.peer.Close())
	deadline := time.Now().Add(10 * time.Second)
	for {
		if segsIn, ended := w.asker.Ended(target); ended {
			if segsIn == before.SegsIn {
				t.Error("no segment came with the reset")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not ended")
		}
		time.Sleep(time.Millisecond)
	}
	if r := w.ask(target)[0]; !r.Ended || r.Refusal != NotRefused {
		t.Errorf("%+v", r)
	}
	ok(t, p.Close())
	if _, ended := w.asker.Ended(target); ended {
		t.Error("ended although nobody holds it")
	}
}

// Learned settings are those of the socket, and reading them changes nothing.
func TestSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for n := range 32 {
		p := w.pair()
		w.diversify(n, p)
		before := p.options(t)
		s, refusal := w.asker.Settings(w.target(p))
		target := w.target(p)
		target.Learn = true
		r := w.ask(target)[0]
		if refusal != NotRefused || !r.Known || r.Settings != s {
			t.Errorf("%v: %+v, %+v", refusal, s, r)
		}
		if s.KeepAlive != (before.keepalive == 1) || int(s.Idle/time.Second) != before.idle || int(s.Interval/time.Second) != before.interval ||
			s.Probes != before.probes || int(s.UserTimeout/time.Millisecond) != before.userTimeout {
			t.Errorf("%+v of %+v", s, before)
		}
		if now := p.options(t); now != before {
			t.Errorf("options %+v, were %+v", now, before)
		}
	}
}

// Without CAP_NET_ADMIN a program's own sockets are asked by keepalive.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 || os.Getenv("DEADPEER_TESTNET_REEXEC") != "" {
		t.Skip("needs root, to become another user")
	}
	const nobody = 65534
	cmd := command("unprivileged")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.Output(); err != nil || string(out) != "ok\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// askUnprivileged asks sockets of its own on the loopback, and one of init's.
func askUnprivileged() error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err != nil {
		return err
	}
	runtime.KeepAlive(s)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var fd int
	if err := raw.Control(func(f uintptr) { fd = int(f) }); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	before, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return err
	}
	book := &ledger{}
	a := New(Options{Journal: book})
	target := Target{ID: conn.ID{Cookie: cookie}, State: conn.Established, Owners: []conn.Owner{{PID: int32(os.Getpid()), FD: int32(fd)}}}
	var r Result
	for r.Refusal = TooFresh; r.Refusal == TooFresh; time.Sleep(100 * time.Millisecond) {
		a.Ask([]Target{target}, func(_ int, got Result) { r = got })
	}
	if r.Refusal != NotRefused || r.Method != Keepalive {
		return fmt.Errorf("own socket: %+v", r)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		after, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return err
		}
		if after.Segs_in != before.Segs_in {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("no answer")
		}
	}
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil || reuse != 1 {
		return fmt.Errorf("SO_REUSEADDR %d, %w", reuse, err)
	}
	target.Owners = []conn.Owner{{PID: 1, FD: 0}}
	a.Ask([]Target{target}, func(_ int, got Result) { r = got })
	if r.Refusal != NeedsPtrace || !r.Refusal.Privilege() || !strings.Contains(r.Refusal.Error(), "CAP_SYS_PTRACE") {
		return fmt.Errorf("socket of init: %+v", r)
	}
	if err := a.Close(); err != nil || len(book.outstanding) != 0 {
		return fmt.Errorf("%d outstanding, %w", len(book.outstanding), err)
	}
	fmt.Println("ok")
	return nil
}
