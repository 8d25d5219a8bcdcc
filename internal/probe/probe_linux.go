package probe

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// Journal remembers originals durably before anything is changed.
type Journal interface {
	Append(records []journal.Record) error
}

// Options configure an Asker.
type Options struct {
	Journal Journal    // must not be nil
	Step    func(Step) // called at each step of a question, for tests; may be nil
}

// Asker puts questions. It is for one goroutine at a time; several Askers of
// one process may share a Journal that locks. One process per host asks at a
// time (journal.Lock), or the second would read a SO_REUSEADDR that the first
// has cleared.
type Asker struct {
	options  Options
	taker    *held.Taker
	records  []journal.Record
	restored []journal.Record // put back, not told to the journal yet
	deferred []int            // targets to be asked once they are journalled
	others   []int            // targets to be asked by keepalive
	buf      [infoLen]byte
}

// New gives an Asker. Close it.
func New(o Options) *Asker {
	return &Asker{options: o, taker: held.New()}
}

// Flush tells the journal what was put back. Before another Asker asks the
// same connections it must have been called, or what it tells later would
// undo what the other has written.
func (a *Asker) Flush() error {
	if len(a.restored) == 0 {
		return nil
	}
	if err := a.options.Journal.Append(a.restored); err != nil {
		return err
	}
	a.restored = a.restored[:0]
	a.step(StepForgotten)
	return nil
}

// Close flushes and releases the process descriptors. A close that lingers,
// because the program has closed its own descriptor meanwhile, is left to end
// by itself.
func (a *Asker) Close() error {
	a.taker.Close()
	return a.Flush()
}

// Target is a connection to ask, with the descriptors that may hold it.
type Target struct {
	ID     conn.ID
	State  conn.State
	Owners []conn.Owner
	Learn  bool // read the keepalive settings on the way
	Reuses bool // SO_REUSEADDR, by an earlier look: journal it without looking first
}

// Result is what came of one question.
type Result struct {
	Refusal  Refusal    // NotRefused when the question was put
	At       time.Time  // when, with the monotonic clock
	SegsIn   uint32     // segments received before it; more since then is an answer
	HeardMS  uint32     // since anything was heard before it, milliseconds
	State    conn.State // of the socket before it, 0 when not known
	Ended    bool       // the socket is CLOSED although its program still holds it: reset, or given up
	Orderly  bool       // or, by both sides
	Method   Method
	Reuses   bool               // the socket carries SO_REUSEADDR
	Settings keepalive.Settings // the socket's own, when asked for
	Known    bool               // Settings were read
}

// Settings reads a connection's keepalive settings and changes nothing.
func (a *Asker) Settings(t Target) (keepalive.Settings, Refusal) {
	h, refusal := a.hold(t)
	if refusal != NotRefused {
		return keepalive.Settings{}, refusal
	}
	defer a.taker.Give(h)
	s, err := keepalive.GetFD(uintptr(h.FD))
	if err != nil {
		return keepalive.Settings{}, Failed
	}
	return s, NotRefused
}

// Cookie reads the cookie of the socket a descriptor holds. ok is false when it
// could not be read.
func (a *Asker) Cookie(o conn.Owner) (cookie uint64, ok bool) { return a.taker.Cookie(o) }

// Ended reports whether the kernel has ended the socket under a program that
// still holds it, and how many segments it had received: when none came with
// the end the kernel has given it up, else it was reset. One that both sides
// have closed has not been ended.
func (a *Asker) Ended(t Target) (segsIn uint32, ended bool) {
	h, refusal := a.hold(t)
	if refusal != NotRefused {
		return 0, false
	}
	defer a.taker.Give(h)
	in, ok := readInfo(h, &a.buf)
	return in.segsIn, ok && in.state == conn.Close && !orderly(h)
}

// orderly reports whether a CLOSED socket has no error to tell, as after a
// close by both sides, or when its program has been told already. Asking for
// the error itself would take it from the program (SO_ERROR in socket(7)).
func orderly(s held.Socket) bool {
	fds := []unix.PollFd{{Fd: int32(s.FD)}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&unix.POLLERR == 0
}

// Ask puts one question to each target and reports each one's result by its
// index, in any order. A socket that carries SO_REUSEADDR is asked only when
// that is in the journal; all of them share one write.
func (a *Asker) Ask(targets []Target, report func(i int, r Result)) {
	a.records, a.deferred, a.others = a.records[:0], a.deferred[:0], a.others[:0]
	for i, t := range targets {
		switch {
		case MethodFor(t.State) == Keepalive:
			a.others = append(a.others, i)
		case t.Reuses && len(t.Owners) > 0:
			a.postpone(i, t, 1)
		default:
			r, value := a.window(t, false)
			switch {
			case value != 0:
				a.postpone(i, t, value)
			case elsewise(r):
				a.others = append(a.others, i)
			default:
				report(i, r)
			}
		}
	}
	a.askReusers(targets, report)
	if len(a.others) > 0 {
		a.askKeepalive(targets, a.others, report)
	}
}

func (a *Asker) postpone(i int, t Target, value int) {
	a.deferred = append(a.deferred, i)
	a.records = append(a.records, journal.Record{
		Kind: journal.ReuseAddr, ID: t.ID, PID: t.Owners[0].PID, FD: t.Owners[0].FD, ReuseAddr: int32(value),
	})
}

// askReusers journals the originals, together with what the last batch has
// put back, and asks.
func (a *Asker) askReusers(targets []Target, report func(int, Result)) {
	if len(a.deferred) == 0 {
		return
	}
	originals := len(a.records)
	a.records = append(a.records, a.restored...)
	// What was put back comes first: a connection may be in both.
	slices.SortStableFunc(a.records, func(x, y journal.Record) int { return int(y.Kind) - int(x.Kind) })
	err := a.options.Journal.Append(a.records)
	if err == nil {
		a.restored = a.restored[:0]
	}
	a.step(StepJournalled)
	for n, i := range a.deferred {
		if err != nil {
			report(i, Result{Refusal: JournalFailed})
			continue
		}
		r, _ := a.window(targets[i], true)
		if elsewise(r) {
			a.others = append(a.others, i)
		} else {
			report(i, r)
		}
		original := a.records[len(a.records)-originals+n]
		a.restored = append(a.restored, journal.Record{Kind: journal.Restored, ID: original.ID, PID: original.PID, FD: original.FD})
	}
}

// elsewise reports whether a window probe that was not sent may be replaced
// by a question by keepalive.
func elsewise(r Result) bool {
	return r.Refusal == NeedsNetAdmin || r.Refusal == ChangedMeanwhile && (r.State == conn.CloseWait || r.State == conn.FinWait2)
}

// window puts the question by a window probe. When the socket carries a
// SO_REUSEADDR that is not in the journal it asks nothing and returns its
// value.
func (a *Asker) window(t Target, journalled bool) (r Result, reuse int) {
	var h held.Socket
	if h, r.Refusal = a.hold(t); r.Refusal != NotRefused {
		return r, 0
	}
	defer a.taker.Give(h)
	value, valueOK := h.Get(unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if value != 0 && !journalled {
		return r, value
	}
	repair, repairOK := h.Get(unix.IPPROTO_TCP, unix.TCP_REPAIR)
	before, infoOK := readInfo(h, &a.buf)
	r.Reuses = value != 0
	r.State, r.SegsIn, r.HeardMS, r.At = before.state, before.segsIn, before.heardMS, time.Now()
	switch {
	case !repairOK || !valueOK || !infoOK:
		r.Refusal = Failed
	case before.state == conn.Close:
		r.Ended, r.Orderly = true, orderly(h)
	case repair != 0:
		r.Refusal = Checkpoint
	case MethodFor(before.state) != WindowProbe:
		r.Refusal = ChangedMeanwhile // nothing would be sent
	}
	if r.Refusal != NotRefused || r.Ended {
		return r, 0
	}
	if t.Learn {
		s, err := keepalive.GetFD(uintptr(h.FD))
		r.Settings, r.Known = s, err == nil
	}
	r.At = time.Now()
	err := h.Set(unix.IPPROTO_TCP, unix.TCP_REPAIR, 0)
	a.step(StepAsked)
	if value != 0 {
		// Even after a refusal: putting back what is there does no harm.
		if back := h.Set(unix.SOL_SOCKET, unix.SO_REUSEADDR, value); err == nil {
			err = back
		}
		a.step(StepRestored)
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		r.Refusal = NeedsNetAdmin
	default:
		r.Refusal = Failed
	}
	return r, 0
}

func (a *Asker) step(s Step) {
	if a.options.Step != nil {
		a.options.Step(s)
	}
}
