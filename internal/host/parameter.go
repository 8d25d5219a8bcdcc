package host

import (
	"fmt"
	"strconv"
	"strings"
)

// Unit is what a parameter counts.
type Unit string

// The units.
const (
	Seconds      Unit = "s"
	Milliseconds Unit = "ms"
	Count        Unit = "count"
	Switch       Unit = "0 or 1"
)

// Part is what a parameter decides, by one name on every system.
type Part string

// The parts. Only the first six can be set.
const (
	Idle          Part = "idle"           // silence before the first keepalive probe
	Interval      Part = "interval"       // time between probes
	Probes        Part = "probes"         // how many must go unanswered
	Retries2      Part = "retries2"       // retransmissions of data
	SYNRetries    Part = "syn-retries"    // of a SYN
	OrphanRetries Part = "orphan-retries" // of what no program holds any more
	SYNACKRetries Part = "synack-retries"
	FinTimeout    Part = "fin-timeout"
	Always        Part = "always" // keepalive also where no program asked for it
	Connect       Part = "connect"
)

// Parameter is one setting of an operating system.
type Parameter struct {
	Name    string // as the system spells it
	Part    Part
	Unit    Unit
	Default int64 // the system's own, in Unit
	Least   int64 // what Set takes, in Unit; Most 0 when it cannot be set
	Most    int64
	Decides string // what depends on it, one sentence

	accepts [2]int64 // what the system takes
}

// InUnit gives a number of seconds, or a count, in the parameter's unit.
func (p Parameter) InUnit(v int64) int64 {
	if p.Unit == Milliseconds {
		return v * 1000
	}
	return v
}

// Portable gives a value in the parameter's unit as seconds, or as a count.
func (p Parameter) Portable(v int64) float64 {
	if p.Unit == Milliseconds {
		return float64(v) / 1000
	}
	return float64(v)
}

// Text spells a value with its unit.
func (p Parameter) Text(v int64) string {
	switch p.Unit {
	case Seconds, Milliseconds:
		return strconv.FormatInt(v, 10) + " " + string(p.Unit)
	}
	return strconv.FormatInt(v, 10)
}

// RangeError is a value that Set does not take.
type RangeError struct {
	Parameter
	Value int64
}

// Error names the parameter, its value and what is allowed.
func (e *RangeError) Error() string {
	return fmt.Sprintf("%s %s: allowed is %s to %s", e.Name, e.Text(e.Value), e.Text(e.Least), e.Text(e.Most))
}

// parse reads a value the way the kernel does (__do_proc_dointvec): the first
// word, in C's bases. What comes after it is not looked at.
func (p Parameter) parse(text string) (v int64, ok bool) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return 0, false
	}
	digits, negative := strings.CutPrefix(words[0], "-")
	base := 10
	switch {
	case strings.HasPrefix(digits, "0x"), strings.HasPrefix(digits, "0X"):
		digits, base = digits[2:], 16
	case len(digits) > 1 && digits[0] == '0':
		digits, base = digits[1:], 8
	}
	u, err := strconv.ParseUint(digits, base, 62)
	if err != nil {
		return 0, false
	}
	if v = int64(u); negative {
		v = -v
	}
	return v, v >= p.accepts[0] && v <= p.accepts[1]
}

const (
	maxInt  = 1<<31 - 1
	minInt  = -1 << 31
	maxSecs = maxInt / 100 // of jiffies in an int, at the lowest HZ
)

// linuxParameters are those of ip-sysctl.rst and tcp(7). What Set takes for
// keepalive is what setsockopt(2) takes, too (MAX_TCP_KEEPIDLE and its like in
// net/tcp.h), so that it can be given to a single socket as well.
func linuxParameters() []Parameter {
	seconds, small := [2]int64{minInt / 100, maxSecs}, [2]int64{0, 255}
	return []Parameter{
		{"net.ipv4.tcp_keepalive_time", Idle, Seconds, 7200, 1, 32767,
			"Silence after which the first keepalive probe goes out, on sockets with SO_KEEPALIVE and no TCP_KEEPIDLE of their own.", seconds},
		{"net.ipv4.tcp_keepalive_intvl", Interval, Seconds, 75, 1, 32767,
			"Time between probes, and from the last one to giving up.", seconds},
		{"net.ipv4.tcp_keepalive_probes", Probes, Count, 9, 1, 127,
			"How many probes in a row must go unanswered before an idle connection is given up.", small},
		{"net.ipv4.tcp_retries2", Retries2, Count, 15, 3, 255,
			"How long data in flight is retransmitted: as long as this many retransmissions would take from a timeout of 200 ms on. RFC 1122 wants 100 s at least, which is 8.", small},
		{"net.ipv4.tcp_syn_retries", SYNRetries, Count, 6, 1, 127,
			"How often the SYN of a connect is repeated.", [2]int64{1, 127}},
		{"net.ipv4.tcp_synack_retries", SYNACKRetries, Count, 5, 0, 0,
			"How often a listener repeats its SYN-ACK.", small},
		{"net.ipv4.tcp_orphan_retries", OrphanRetries, Count, 0, 0, 255,
			"How often a connection that its program has closed is retransmitted; 0 stands for 8.", small},
		{"net.ipv4.tcp_fin_timeout", FinTimeout, Seconds, 60, 0, 0,
			"How long a connection that its program has closed waits for the peer's FIN.", seconds},
	}
}

// bsdParameters are those of tcp(4) of FreeBSD and macOS.
func bsdParameters(always int64) []Parameter {
	const day = 24 * 60 * 60 * 1000
	ms := [2]int64{1, maxInt}
	return []Parameter{
		{"net.inet.tcp.keepidle", Idle, Milliseconds, 7_200_000, 1000, 10 * day,
			"Silence after which the first keepalive probe goes out.", ms},
		{"net.inet.tcp.keepintvl", Interval, Milliseconds, 75_000, 1000, day,
			"Time between probes.", ms},
		{"net.inet.tcp.keepcnt", Probes, Count, 8, 1, 127,
			"How many probes, that is idle + this × interval of silence, before an idle connection is given up.", [2]int64{1, maxInt}},
		{"net.inet.tcp.keepinit", Connect, Milliseconds, 75_000, 0, 0,
			"How long a connect may take.", ms},
		{"net.inet.tcp.always_keepalive", Always, Switch, always, 0, 0,
			"1: keepalive is on for every connection, 0: for those with SO_KEEPALIVE.", [2]int64{0, 1}},
	}
}

// windowsParameters are the values of the registry key [WindowsKey].
func windowsParameters() []Parameter {
	dword := [2]int64{0, 1<<32 - 1}
	return []Parameter{
		{"KeepAliveTime", Idle, Milliseconds, 7_200_000, 1000, 32_767_000,
			"Silence after which the first keepalive probe goes out.", dword},
		{"KeepAliveInterval", Interval, Milliseconds, 1000, 1000, 32_767_000,
			"Time between probes. Windows Vista and later send 10, which cannot be changed here.", dword},
		{"TcpMaxDataRetransmissions", Retries2, Count, 5, 3, 255,
			"How often data is retransmitted; up to Windows XP and Server 2003 also how many keepalive probes must go unanswered.", dword},
	}
}

// WindowsKey is the registry key of Windows NT and later, below
// HKEY_LOCAL_MACHINE.
const WindowsKey = `SYSTEM\CurrentControlSet\Services\Tcpip\Parameters`
