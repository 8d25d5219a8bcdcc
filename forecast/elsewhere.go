package forecast

import (
	"errors"
	"fmt"
)

// The systems that [For] knows, by their GOOS.
const (
	Linux   = "linux"
	MacOS   = "darwin"
	FreeBSD = "freebsd"
	OpenBSD = "openbsd"
	Windows = "windows"
)

// documented is the idle rule of systems other than Linux: the first probe
// after the idle time, the others an interval apart, and the end an interval
// after the last. No user timeout of theirs has a part in it.
//
// BSD: TP_KEEPIDLE + TP_MAXIDLE in tcp_timer_keep of FreeBSD's
// sys/netinet/tcp_timer.c, and the same in OpenBSD's and macOS's. Windows:
// SIO_KEEPALIVE_VALS and TCP_KEEPCNT in the Winsock reference; calls in
// progress get WSAENETRESET.
func documented(s Situation, in Input) (Forecast, error) {
	f := Forecast{Situation: s, Rule: Never, Documented: true}
	switch in.OS {
	case MacOS, FreeBSD, OpenBSD:
		f.Errno = "ETIMEDOUT"
	case Windows:
		f.Errno = "WSAENETRESET"
	default:
		return f, &InputError{"os", in.OS, "linux, darwin, freebsd, openbsd, windows", "give one of these"}
	}
	if s != SituationIdle {
		return f, fmt.Errorf("on %s: only %s is documented: %w", in.OS, SituationIdle, errors.ErrUnsupported)
	}
	if !in.KeepAlive {
		f.Errno = ""
		return f, nil
	}
	if in.Policy.Probes == 0 || in.Policy.Interval == 0 {
		return f, &InputError{"policy", fmt.Sprintf("interval %v, probes %d", in.Policy.Interval, in.Policy.Probes),
			"both above 0", "give the values in force"}
	}
	f.GivesUp, f.Rule, f.ArticleBound = true, KeepAlive, articleBound(in)
	at := max(0, in.Policy.Idle-in.Heard)
	if in.TimerIn > 0 {
		at = in.TimerIn
	}
	for n := in.Probes + 1; n <= in.Policy.Probes; n++ {
		f.Steps = append(f.Steps, Step{Probe, n, at, at})
		at += in.Policy.Interval
	}
	f.Earliest, f.Latest = at, at
	return f, nil
}
