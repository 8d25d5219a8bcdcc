package keepalive

import (
	"strconv"
	"strings"
	"time"
)

// system is what one operating system can do. The tables are compiled on
// every OS, so that the logic that reads them is tested on one.
type system struct {
	limits limits
	on     option // SO_KEEPALIVE
	// The ways to set each part, best first. An empty list: the system cannot.
	idle, interval, probes, timeout []way
	// unknown are the errnos of an option that the kernel does not have.
	unknown []int
	// vals: SIO_KEEPALIVE_VALS sets idle and interval where there is no option.
	vals bool
	// threshold sets interval·probes where there is no option for either.
	threshold *way
	// freshTimeout: zero does not switch the user timeout off. What a fresh
	// socket has does.
	freshTimeout bool
}

type option struct {
	level, name int
	label       string
}

// way is an option and the unit of its value.
type way struct {
	option
	unit time.Duration
}

const (
	tcp = 6 // IPPROTO_TCP

	seconds = time.Second
	millis  = time.Millisecond
	count   = time.Duration(1)
)

// soKeepAliveBSD is SO_KEEPALIVE everywhere but on Linux.
func soKeepAliveBSD() option { return option{0xffff, 8, "SO_KEEPALIVE"} }

// systemFor is the table of the OS; release is the kernel's, as uname -r
// spells it, or "".
func systemFor(goos, release string) (system, bool) {
	tcpOption := func(name int, label string, unit time.Duration) []way {
		return []way{{option{tcp, name, label}, unit}}
	}
	// bsd: TCP_KEEPIDLE and its fellows of FreeBSD's netinet/tcp.h, which
	// DragonFly shares.
	bsd := func(unit time.Duration) system {
		return system{
			limits:   bsdLimits(),
			on:       soKeepAliveBSD(),
			idle:     tcpOption(0x100, "TCP_KEEPIDLE", unit),
			interval: tcpOption(0x200, "TCP_KEEPINTVL", unit),
			probes:   tcpOption(0x400, "TCP_KEEPCNT", count),
			unknown:  []int{42, 45, 102}, // ENOPROTOOPT, EOPNOTSUPP
		}
	}
	switch goos {
	case "linux", "android": // keepalive_linux.go does without the rest
		return system{limits: linuxLimits()}, true
	case "darwin", "ios":
		s := bsd(seconds)
		s.idle = tcpOption(0x10, "TCP_KEEPALIVE", seconds)
		s.interval = tcpOption(0x101, "TCP_KEEPINTVL", seconds)
		s.probes = tcpOption(0x102, "TCP_KEEPCNT", count)
		// From the first retransmission on; 0 is off (tcp_timers in xnu).
		s.timeout = tcpOption(0x80, "TCP_RXT_CONNDROPTIME", seconds)
		return s, true
	case "freebsd":
		s := bsd(seconds)
		// Since FreeBSD 14; 0 is off (tcp(4)).
		s.timeout = tcpOption(68, "TCP_MAXUNACKTIME", seconds)
		return s, true
	case "dragonfly":
		if before(release, 5, 8) {
			return bsd(millis), true
		}
		return bsd(seconds), true
	case "netbsd":
		s := bsd(seconds)
		s.idle = tcpOption(3, "TCP_KEEPIDLE", seconds)
		s.interval = tcpOption(5, "TCP_KEEPINTVL", seconds)
		s.probes = tcpOption(6, "TCP_KEEPCNT", count)
		return s, true
	case "openbsd":
		s := bsd(seconds)
		s.idle, s.interval, s.probes = nil, nil, nil
		return s, true
	case "illumos", "solaris":
		idle, interval, probes := 0x22, 0x24, 0x23
		if goos == "solaris" { // since 11.4
			idle, interval, probes = 0x1d, 0x1e, 0x1f
		}
		return system{
			limits: solarisLimits(),
			on:     soKeepAliveBSD(),
			idle: append(tcpOption(idle, "TCP_KEEPIDLE", seconds),
				tcpOption(0x16, "TCP_KEEPALIVE_THRESHOLD", millis)...),
			interval:  tcpOption(interval, "TCP_KEEPINTVL", seconds),
			probes:    tcpOption(probes, "TCP_KEEPCNT", count),
			threshold: &tcpOption(0x17, "TCP_KEEPALIVE_ABORT_THRESHOLD", millis)[0],
			unknown:   []int{99, 122},
		}, true
	case "windows":
		return system{
			limits:   windowsLimits(),
			on:       soKeepAliveBSD(),
			idle:     tcpOption(3, "TCP_KEEPIDLE", seconds),
			interval: tcpOption(17, "TCP_KEEPINTVL", seconds),
			probes:   tcpOption(16, "TCP_KEEPCNT", count),
			timeout: append(tcpOption(14, "TCP_MAXRTMS", millis),
				tcpOption(5, "TCP_MAXRT", seconds)...),
			unknown:      []int{10042, 10045}, // WSAENOPROTOOPT, WSAEOPNOTSUPP
			vals:         true,
			freshTimeout: true,
		}, true
	}
	return system{}, false
}

// before says whether a release such as "5.6-RELEASE" is before major.minor.
// What cannot be read is taken for newer.
func before(release string, major, minor int) bool {
	first, rest, ok := strings.Cut(release, ".")
	if !ok {
		return false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	x, err1 := strconv.Atoi(first)
	y, err2 := strconv.Atoi(rest[:end])
	if err1 != nil || err2 != nil {
		return false
	}
	return x < major || x == major && y < minor
}
