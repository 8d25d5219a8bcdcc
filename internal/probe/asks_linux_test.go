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
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/testnet"
	"deadpeer/internal/wire"
)

func linger(t testing.TB, fd int) (l unix.Linger) {
	t.Helper()
	n := uint32(unsafe.Sizeof(l))
	if errno := (held.Socket{FD: fd}).Getsockopt(unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&l), &n); errno != 0 {
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
		if question.Seq != acknowledged-1 || question.Flags != wire.ACK {
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
	for tries := 0; ; tries++ { // a busy machine may take a second
		must(pairs[0].peer.Write([]byte("x")))(t)
		r := w.ask(w.target(pairs[0]))[0]
		if r.Refusal == TooFresh && r.Refusal.Passing() {
			break
		} else if tries == 20 {
			t.Fatalf("%+v, want too fresh", r)
		}
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
