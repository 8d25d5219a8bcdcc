package probe

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/journal"
	"deadpeer/internal/sockdiag"
	"deadpeer/internal/testnet"
)

// roleVariable makes the test binary another process.
const roleVariable = "PROBE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(testnet.Main(m))
	case "hold": // descriptors inherited, until standard input ends
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "flip":
		inherited := []int{3, 4, 5, 6, 7, 8, 9, 10}
		fmt.Println("ready")
		if err := flip(inherited); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "unprivileged":
		if err := askUnprivileged(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// command is the test binary in a role, named in a way that users can run who
// may not enter the folder it lies in.
func command(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ledger is a Journal that keeps what is outstanding in memory.
type ledger struct {
	mu          sync.Mutex
	outstanding map[conn.ID]journal.Record
	written     int
	err         error // what Append says
}

func (l *ledger) Append(records []journal.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	for _, r := range records {
		switch {
		case r.Kind == journal.Restored:
			delete(l.outstanding, r.ID)
		case l.outstanding == nil:
			l.outstanding = map[conn.ID]journal.Record{}
			fallthrough
		default:
			if _, earlier := l.outstanding[r.ID]; !earlier {
				l.outstanding[r.ID] = r
			}
			l.written++
		}
	}
	return nil
}

// world is two hosts on a link; the sockets of us are asked.
type world struct {
	t        testing.TB
	us, peer *testnet.Host
	link     *testnet.Link
	diag     *sockdiag.Conn
	ledger   *ledger
	asker    *Asker
	listener *net.TCPListener
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ledger: &ledger{}}
	n := must(testnet.New(t.Context()))(t)
	t.Cleanup(func() { ok(t, n.Close()) })
	w.us, w.peer = must(n.Host("us"))(t), must(n.Host("peer"))(t)
	w.link = must(n.Connect(w.us, w.peer))(t)
	w.diag = must(sockdiag.Open(w.us.NS()))(t)
	t.Cleanup(func() { ok(t, w.diag.Close()) })
	w.listener = must(w.us.Listen(t.Context(), "tcp4", netip.AddrPortFrom(w.link.IPv4(w.us), 0).String()))(t)
	t.Cleanup(func() { _ = w.listener.Close() })
	w.asker = New(Options{Journal: w.ledger})
	t.Cleanup(func() {
		ok(t, w.asker.Close())
		if n := len(w.ledger.outstanding); n != 0 {
			t.Errorf("%d sockets are outstanding in the journal", n)
		}
	})
	return w
}

// pair is a connection: our end, and the peer's.
type pair struct {
	*net.TCPConn
	peer *net.TCPConn
	sock conn.Sock
}

func (w *world) pair() *pair {
	w.t.Helper()
	c := must(w.peer.Dial(w.t.Context(), "tcp4", w.listener.Addr().String()))(w.t)
	s := must(w.listener.AcceptTCP())(w.t)
	w.t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	return w.adopt(s, c)
}

func (w *world) adopt(s, c *net.TCPConn) *pair {
	w.t.Helper()
	p := &pair{TCPConn: s, peer: c}
	cookie := p.cookie(w.t)
	ok(w.t, w.diag.Dump(w.t.Context(), sockdiag.Query{}, func(s *conn.Sock, _ *sockdiag.Memory) error {
		if s.Cookie == cookie {
			p.sock = *s
		}
		return nil
	}))
	if p.sock.Cookie == 0 {
		w.t.Fatal("socket not listed")
	}
	return p
}

// read looks the socket up again.
func (w *world) read(p *pair) conn.Sock {
	w.t.Helper()
	s := p.sock
	ok(w.t, w.diag.Lookup([]*conn.Sock{&s}, func(_ int, err error) { ok(w.t, err) }))
	return s
}

func (p *pair) fd(t testing.TB) (fd int) {
	t.Helper()
	ok(t, must(p.SyscallConn())(t).Control(func(f uintptr) { fd = int(f) }))
	return fd
}

func (p *pair) cookie(t testing.TB) uint64 {
	t.Helper()
	return must(unix.GetsockoptUint64(p.fd(t), unix.SOL_SOCKET, unix.SO_COOKIE))(t)
}

func (p *pair) set(t testing.TB, level, name, value int) {
	t.Helper()
	ok(t, unix.SetsockoptInt(p.fd(t), level, name, value))
}

// target is the connection in its present state.
func (w *world) target(p *pair) Target {
	w.t.Helper()
	s := w.read(p)
	return Target{ID: s.ID(), State: s.State, Owners: []conn.Owner{{PID: int32(os.Getpid()), FD: int32(p.fd(w.t))}}}
}

// ask puts one question to each and gives the results in order.
func (w *world) ask(targets ...Target) []Result {
	w.t.Helper()
	results := make([]Result, len(targets))
	told := make([]int, len(targets))
	w.asker.Ask(targets, func(i int, r Result) {
		results[i] = r
		told[i]++
	})
	for i, n := range told {
		if n != 1 {
			w.t.Errorf("target %d: %d results", i, n)
		}
	}
	return results
}

// answered waits for the answer to a question.
func (w *world) answered(p *pair, r Result) bool {
	w.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if w.read(p).SegsIn != r.SegsIn {
			return true
		}
	}
	return false
}

// options are what asking must leave as it was.
type options struct {
	reuse, keepalive, idle, interval, probes, userTimeout, repair int

	linger unix.Linger
}

func (p *pair) options(t testing.TB) (o options) {
	t.Helper()
	fd := p.fd(t)
	for _, opt := range []struct {
		to          *int
		level, name int
	}{
		{&o.reuse, unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{&o.keepalive, unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		{&o.idle, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{&o.interval, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		{&o.probes, unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		{&o.userTimeout, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
		{&o.repair, unix.IPPROTO_TCP, unix.TCP_REPAIR},
	} {
		*opt.to = must(unix.GetsockoptInt(fd, opt.level, opt.name))(t)
	}
	o.linger = linger(t, fd)
	return o
}

// expiry is when the pending timer of a socket fires, between two moments.
type expiry struct {
	kind       conn.Timer
	from, till time.Time
}

func (w *world) expiry(p *pair) expiry {
	w.t.Helper()
	before := time.Now()
	s := w.read(p)
	left := time.Duration(s.TimerMS) * time.Millisecond
	return expiry{s.Timer, before.Add(left), time.Now().Add(left)}
}

// natural is when the keepalive timer fires by itself.
func (w *world) natural(p *pair, o options) expiry {
	w.t.Helper()
	if o.keepalive == 0 {
		return expiry{}
	}
	before := time.Now()
	s := w.read(p)
	heard, _ := s.Heard()
	left := time.Duration(o.idle)*time.Second - heard
	return expiry{conn.TimerKeepalive, before.Add(left), time.Now().Add(left)}
}

// sameAs allows for two ticks at 100 Hz, by which jiffies are rounded.
func (e expiry) sameAs(f expiry) bool {
	const ticks = 20 * time.Millisecond
	return e.kind == f.kind && (e.kind == conn.TimerNone || !e.from.After(f.till.Add(ticks)) && !f.from.After(e.till.Add(ticks)))
}

// start starts another process that inherits the sockets, as descriptors 3, 4,
// …. It is told to end by the end of its standard input.
func start(t *testing.T, role string, pairs ...*pair) (pid int32, stop func(), ended <-chan struct{}) {
	t.Helper()
	cmd := command(role)
	stdin := must(cmd.StdinPipe())(t)
	stdout := must(cmd.StdoutPipe())(t)
	for _, p := range pairs {
		f := must(p.File())(t)
		defer func() { _ = f.Close() }()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	ok(t, cmd.Start())
	done := make(chan struct{})
	stop = func() {
		_ = stdin.Close()
		<-done
	}
	line := make([]byte, 6)
	_, err := io.ReadFull(stdout, line)
	go func() {
		defer close(done)
		if err := cmd.Wait(); err != nil {
			t.Errorf("helper %s: %v", role, err)
		}
	}()
	t.Cleanup(stop)
	if err != nil || string(line) != "ready\n" {
		t.Fatalf("helper %s said %q, %v", role, line, err)
	}
	return int32(cmd.Process.Pid), stop, done
}

func (w *world) waitState(p *pair, s conn.State) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); w.read(p).State != s; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("state %s, want %s", w.read(p).State, s)
		}
	}
}

// unfresh waits until the peer was heard a second ago.
func (w *world) unfresh(pairs ...*pair) {
	w.t.Helper()
	for _, p := range pairs {
		for {
			s := w.read(p)
			if d, _ := s.Heard(); d >= time.Second {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}
