package probe

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

const (
	tick      = 12 * time.Millisecond // longer than one jiffy at any HZ
	tickTries = 8
	// longest and maxProbes are the greatest values that can be put back
	// (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPCNT); sysctls go beyond.
	longest   = 32767 * time.Second
	maxProbes = 127
)

// askKeepalive puts the questions by the keepalive timer: for all of them the
// originals are journalled, then the timers are made to fire, then, a tick
// later, the originals go back. No descriptor is held while waiting.
func (a *Asker) askKeepalive(targets []Target, indices []int, report func(int, Result)) {
	type pending struct {
		i       int
		record  journal.Record
		result  Result
		segsOut uint32
		changed bool // the options are ours now
		sent    bool
	}
	var batch []pending
	a.records = a.records[:0]
	for _, i := range indices {
		record, result := a.mayAskKeepalive(targets[i])
		if result.Refusal != NotRefused || result.Ended {
			report(i, result)
			continue
		}
		batch = append(batch, pending{i: i, record: record, result: result})
		a.records = append(a.records, record)
	}
	if len(batch) == 0 {
		return
	}
	if err := a.options.Journal.Append(a.records); err != nil {
		for _, p := range batch {
			report(p.i, Result{Refusal: JournalFailed, Method: Keepalive})
		}
		return
	}
	a.step(StepJournalled)
	for n := range batch {
		p := &batch[n]
		p.segsOut, p.changed = a.fire(targets[p.i], p.record, &p.result)
	}
	a.step(StepAsked)
	for range tickTries {
		time.Sleep(tick)
		left := 0
		for n := range batch {
			p := &batch[n]
			if p.sent || !p.changed {
				continue
			}
			if p.sent = a.probeWentOut(targets[p.i], p.segsOut); !p.sent {
				left++
			}
		}
		if left == 0 {
			break
		}
	}
	a.records = a.records[:0]
	for n := range batch {
		p := &batch[n]
		var err error
		if p.changed {
			err = a.Restore(targets[p.i], p.record)
		}
		switch {
		case err == nil, errors.Is(err, OwnerGone), errors.Is(err, Reused):
			a.records = append(a.records, journal.Record{Kind: journal.Restored, ID: p.record.ID, PID: p.record.PID, FD: p.record.FD})
		case p.result.Refusal == NotRefused && errors.Is(err, Probing):
			p.result.Refusal = Probing
		case p.result.Refusal == NotRefused:
			p.result.Refusal = Failed
		}
		if !p.sent && p.result.Refusal == NotRefused {
			p.result.Refusal = InFlight
		}
	}
	a.step(StepRestored)
	// A journal that cannot be written now keeps the originals: the next
	// start puts them back once more, which does no harm.
	_ = a.options.Journal.Append(a.records)
	a.step(StepForgotten)
	for _, p := range batch {
		report(p.i, p.result)
	}
}

// mayAskKeepalive reads the originals and refuses what the question could
// kill: with a user timeout the second unanswered probe ends the connection,
// and so does the probe that reaches the original count, since the kernel's
// own count stays raised after the options are back.
func (a *Asker) mayAskKeepalive(t Target) (journal.Record, Result) {
	r := Result{Method: Keepalive}
	var h held.Socket
	if h, r.Refusal = a.hold(t); r.Refusal != NotRefused {
		return journal.Record{}, r
	}
	defer a.taker.Give(h)
	repair, ok := h.Get(unix.IPPROTO_TCP, unix.TCP_REPAIR)
	in, infoOK := readInfo(h, &a.buf)
	s, err := keepalive.GetFD(uintptr(h.FD))
	r.Settings, r.Known = s, err == nil
	r.State, r.SegsIn, r.HeardMS, r.At = in.state, in.segsIn, in.heardMS, time.Now()
	switch {
	case !ok || !infoOK || err != nil:
		r.Refusal = Failed
	case in.state == conn.Close:
		r.Ended, r.Orderly = true, orderly(h)
	case repair != 0:
		r.Refusal = Checkpoint
	case s.UserTimeout != 0:
		r.Refusal = UserTimeoutSet
	case s.Idle < time.Second || s.Idle > longest || s.Interval < time.Second || s.Interval > longest || s.Probes > maxProbes:
		r.Refusal = ValuesOutOfRange
	case int(in.probes)+cost(in, s) >= s.Probes:
		r.Refusal = ProbesExhausted
	case in.unacked != 0:
		r.Refusal = InFlight
	case in.heardMS < 1000:
		r.Refusal = TooFresh
	}
	return journal.Record{
		Kind: journal.KeepAlive, ID: t.ID, PID: t.Owners[0].PID, FD: t.Owners[0].FD,
		KeepAlive: s.KeepAlive, Idle: int32(s.Idle / time.Second), Interval: int32(s.Interval / time.Second), Probes: int32(s.Probes),
	}, r
}

// cost is by how much a question raises the kernel's count of unanswered
// probes. Putting TCP_KEEPIDLE back makes a timer that is due fire once more.
func cost(in info, s keepalive.Settings) int {
	if s.KeepAlive && time.Duration(in.heardMS)*time.Millisecond >= s.Idle-time.Second {
		return 2
	}
	return 1
}

// fire makes the keepalive timer fire at the next tick: TCP_KEEPIDLE re-arms
// it from the time already idle (tcp_sock_set_keepidle_locked). The count
// goes up first, so that the probe can never be the last.
func (a *Asker) fire(t Target, was journal.Record, r *Result) (segsOut uint32, changed bool) {
	var h held.Socket
	if h, r.Refusal = a.hold(t); r.Refusal != NotRefused {
		return 0, false
	}
	defer a.taker.Give(h)
	s, err := keepalive.GetFD(uintptr(h.FD))
	in, ok := readInfo(h, &a.buf)
	switch {
	case err != nil || !ok:
		r.Refusal = Failed
		return 0, false
	case in.state == conn.Close:
		r.Ended, r.Orderly, r.State, r.SegsIn = true, orderly(h), in.state, in.segsIn
		return 0, false
	case s.KeepAlive != was.KeepAlive || s.UserTimeout != 0 || int32(s.Idle/time.Second) != was.Idle ||
		int32(s.Interval/time.Second) != was.Interval || int32(s.Probes) != was.Probes:
		r.Refusal = ChangedMeanwhile
		return 0, false
	}
	r.State, r.SegsIn, r.HeardMS, r.At = in.state, in.segsIn, in.heardMS, time.Now()
	for _, o := range ours() {
		if h.Set(o.level, o.name, o.value) != nil {
			r.Refusal = Failed
			break
		}
	}
	return in.segsOut, true
}

type option struct{ level, name, value int }

// ours are the options as a question sets them, in that order.
func ours() [4]option {
	return [...]option{
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, maxProbes},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
	}
}

func (a *Asker) probeWentOut(t Target, segsOut uint32) bool {
	h, refusal := a.hold(t)
	if refusal != NotRefused {
		return true // nothing to wait for
	}
	defer a.taker.Give(h)
	in, ok := readInfo(h, &a.buf)
	// With data in flight what went out was that, and the timer keeps silent.
	return !ok || in.segsOut != segsOut && in.unacked == 0 || in.state == conn.Close
}

// Restore puts back what a record says, but for keepalive options that are not
// as a question sets them: those its program has set meanwhile. OwnerGone and
// Reused mean that none of the target's descriptors holds the socket any more.
// Probing means that all but the count is back: so many probes went unanswered
// meanwhile that with it the kernel would end the connection without another.
func (a *Asker) Restore(t Target, r journal.Record) error {
	h, refusal := a.hold(t)
	if refusal != NotRefused {
		return refusal
	}
	defer a.taker.Give(h)
	if r.Kind == journal.ReuseAddr {
		if now, ok := h.Get(unix.SOL_SOCKET, unix.SO_REUSEADDR); ok && now != 0 {
			return nil // only a question clears it
		}
		return h.Set(unix.SOL_SOCKET, unix.SO_REUSEADDR, int(r.ReuseAddr))
	}
	if r.Kind == journal.Rearm {
		if now, ok := h.Get(unix.SOL_SOCKET, unix.SO_KEEPALIVE); ok && now != 0 {
			return nil
		}
		return h.Set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	}
	on := 0
	if r.KeepAlive {
		on = 1
	}
	// Off goes first, and the interval before the idle time that makes the
	// timer start again, so that it never runs by values half put back; the
	// count goes last, so that no probe already out is one too many.
	set := ours()
	var errs []error
	back := func(was option, value int) {
		if now, ok := h.Get(was.level, was.name); !ok || now == was.value && now != value {
			errs = append(errs, h.Set(was.level, was.name, value))
		}
	}
	in, known := readInfo(h, &a.buf)
	back(set[2], on)
	back(set[1], int(r.Interval))
	back(set[3], int(r.Idle))
	out := int(in.probes)
	if time.Duration(in.heardMS)*time.Millisecond >= time.Duration(r.Idle)*time.Second {
		out++ // it was due, and sent one more
	}
	if count, ok := h.Get(set[0].level, set[0].name); r.KeepAlive && ok && count == set[0].value && (!known || out >= int(r.Probes)) {
		return errors.Join(append(errs, Probing)...)
	}
	back(set[0], int(r.Probes))
	return errors.Join(errs...)
}
