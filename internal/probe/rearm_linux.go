package probe

import (
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// Rearm starts the keepalive timer of each target anew, for idle from now,
// where the socket has keepalive on and follows the host's idle time, which
// must be that by now. A lowered sysctl does not touch a timer that is armed;
// SO_KEEPALIVE off and on does (tcp_set_keepalive), and leaves the socket
// following the host, which TCP_KEEPIDLE would not. That it is to be on again
// is journalled first.
//
// It sends nothing and tells each target's refusal by its index. Left alone
// are sockets in the middle of probing, whose count of unanswered probes
// stays and could be over a new limit already (they are on their way to the
// end by the new values), and those with a user timeout that the first probe
// would find over.
func (a *Asker) Rearm(targets []Target, idle time.Duration, report func(i int, r Refusal)) {
	var fit []int
	a.records = a.records[:0]
	for i, t := range targets {
		h, r := a.hold(t)
		if r == NotRefused {
			r = a.mayRearm(h, idle)
			a.taker.Give(h)
		}
		if r != NotRefused {
			report(i, r)
			continue
		}
		fit = append(fit, i)
		a.records = append(a.records, journal.Record{Kind: journal.Rearm, ID: t.ID, PID: t.Owners[0].PID, FD: t.Owners[0].FD})
	}
	if len(fit) == 0 {
		return
	}
	if err := a.options.Journal.Append(a.records); err != nil {
		for _, i := range fit {
			report(i, JournalFailed)
		}
		return
	}
	a.step(StepJournalled)
	back := a.records[:0]
	for n, i := range fit {
		r, on := a.rearm(targets[i], idle)
		if on {
			was := a.records[n]
			back = append(back, journal.Record{Kind: journal.Restored, ID: was.ID, PID: was.PID, FD: was.FD})
		}
		report(i, r)
	}
	a.step(StepRestored)
	// A journal that cannot be written now makes the next start look whether
	// they are on.
	_ = a.options.Journal.Append(back)
	a.step(StepForgotten)
}

// rearm switches keepalive off and on. on is false when it may still be off.
func (a *Asker) rearm(t Target, idle time.Duration) (r Refusal, on bool) {
	h, r := a.hold(t)
	if r != NotRefused {
		return r, true // closed meanwhile, or never touched
	}
	defer a.taker.Give(h)
	if r := a.mayRearm(h, idle); r != NotRefused {
		return r, true
	}
	if h.Set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0) != nil {
		return Failed, true
	}
	a.step(StepOff)
	if h.Set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1) != nil {
		return Failed, false
	}
	return NotRefused, true
}

func (a *Asker) mayRearm(h held.Socket, idle time.Duration) Refusal {
	repair, ok := h.Get(unix.IPPROTO_TCP, unix.TCP_REPAIR)
	in, infoOK := readInfo(h, &a.buf)
	s, err := keepalive.GetFD(uintptr(h.FD))
	heard := time.Duration(in.heardMS) * time.Millisecond
	switch {
	case !ok || !infoOK || err != nil:
		return Failed
	case in.state != conn.Established && in.state != conn.CloseWait && in.state != conn.FinWait2:
		return ChangedMeanwhile
	case repair != 0:
		return Checkpoint
	case !s.KeepAlive:
		return Off
	case s.Idle != idle:
		return OwnValue
	case in.probes != 0:
		return Probing
	case s.UserTimeout != 0 && s.UserTimeout <= heard+idle+s.Interval:
		return UserTimeoutSet
	}
	return NotRefused
}
