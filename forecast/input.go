package forecast

import (
	"fmt"
	"strconv"
	"time"

	"deadpeer/keepalive"
)

// Input is what a forecast starts from. [Idle] clamps values out of range to
// the nearest that a kernel can hold, [For] refuses them.
type Input struct {
	// KeepAlive says whether SO_KEEPALIVE is on. Where it is off, an idle
	// connection is never given up, whatever Policy says.
	KeepAlive bool
	// Policy has the values in force, as [keepalive.Get] reads them. Zero is
	// zero here, as a sysctl can set it: no interval sends the probes a tick
	// apart, no probes gives up without one. A user timeout of zero or less is
	// none.
	Policy keepalive.Policy
	// HZ is the kernel's CONFIG_HZ, ticks per second; 0 means 250.
	HZ int
	// Heard is the time since the last segment from the peer, data or ACK.
	Heard time.Duration
	// TimerIn is the time until the pending timer is due (sock_diag tells it).
	// Zero makes a forecast from the beginning of the situation, or from the
	// last segment on. Anything below a tick says that it is due already and
	// has not gone off yet, being late. Negative means that there is a keepalive
	// timer, and its time is not known.
	TimerIn time.Duration
	// Probes is how many probes have gone unanswered so far (tcpi_probes).
	Probes int

	// The fields from here on are read by [For] only.

	// OS is a GOOS: linux (also ""), darwin, freebsd, openbsd or windows.
	OS string
	// Clock, when known, makes the forecast one instant. Linux only.
	Clock Clock
	// TimerFor is the time that the pending keepalive timer was armed for;
	// 0 means not known. With TimerIn and Clock it makes the instant certain.
	TimerFor time.Duration
	// Retransmits is how often the pending timer has gone off in vain: how many
	// retransmissions of data, FIN, SYN or SYN-ACK there were, or how many
	// window probes went unanswered (idiag_retrans). RTO stays the timeout
	// without backoff; where the one in force has grown to RTOMax it no longer
	// tells that, and RTO is taken to be right within an eighth.
	Retransmits int
	// Backoff is how often the timeout was doubled (tcpi_backoff). In
	// zero-window it says how many probes there were, answered or not.
	// Elsewhere it is Retransmits, also if 0; other values, which come of ICMP
	// errors, are not forecast.
	Backoff int
	// Sent is the time since data was last sent, retransmissions included
	// (tcpi_last_data_sent); 0 means not known. A segment without data, such as
	// a FIN or a SYN, is none.
	Sent time.Duration
	// IPv6 matters where neighbours fail: only IPv4 takes backoff back then.
	IPv6 bool
	// RTT is the smoothed round-trip time (tcpi_rtt); 0 means RTO - 200 ms, or
	// 100 µs.
	RTT time.Duration
	// RTO is the retransmission timeout without backoff (tcpi_rto before the
	// first retransmission); 0 means RTT + 200 ms, which is what a steady
	// connection comes to.
	RTO time.Duration
	// RTOMax is tcp_rto_max_ms or TCP_RTO_MAX_MS; 0 means 120 s. Before Linux
	// 6.19 it is 120 s in syn-received, whatever those say.
	RTOMax time.Duration
	// Packets is how many segments are in flight; 0 means 1.
	Packets int
	// NoLossProbe says that there is no tail-loss probe (RFC 8985 section 7):
	// the peer has no SACK, or tcp_early_retrans is neither 3 nor 4.
	NoLossProbe bool
	// Retries2 is tcp_retries2; 0 means 15, negative 0.
	Retries2 int
	// SYNRetries is tcp_syn_retries, or TCP_SYNCNT; 0 means 6. In syn-received
	// it is tcp_synack_retries, or TCP_SYNCNT of the listener; 0 means 5,
	// negative 0.
	SYNRetries int
	// SYNLinear is tcp_syn_linear_timeouts; 0 means 4, negative 0. Kernels
	// before 6.5 have 0.
	SYNLinear int
	// OrphanRetries is tcp_orphan_retries; 0 is 8 for a peer that may live.
	OrphanRetries int
	// FinTimeout is tcp_fin_timeout; 0 means 60 s.
	FinTimeout time.Duration
	// Linger2 is TCP_LINGER2; 0 means none, negative that FIN-WAIT-2 is not
	// entered at all.
	Linger2 time.Duration
	// ProbedFor is how long the window had been shut, and probes answered,
	// when the peer vanished.
	ProbedFor time.Duration
	// Ownership says whether a program still holds the socket.
	Ownership Ownership
	// NoNeighbour says that the next hop does not answer ARP or neighbour
	// discovery. It is so in arp-failing; syn-sent reads it.
	NoNeighbour bool
}

// Clock is the phase of the kernel's ticks at the moment that an Input
// describes. The zero Clock is not known.
type Clock struct {
	Jiffies uint64        // ticks counted by then; as in /proc/timer_list
	Since   time.Duration // since the last of them, less than a tick
}

// Ownership says whether a program holds a socket.
type Ownership uint8

// Who holds a socket.
const (
	Usual    Ownership = iota // orphaned in fin-wait-1, fin-wait-2 and last-ack, held elsewhere
	Held                      // by a program, also after shutdown(2)
	Orphaned                  // by nobody, after close(2)
)

// InputError says which field of an Input cannot be, and what would do.
type InputError struct {
	Field   string
	Value   string
	Allowed string
	Mend    string
}

// Error names the field, its value, what is allowed and the mend.
func (e *InputError) Error() string {
	return fmt.Sprintf("%s %s: allowed is %s: %s", e.Field, e.Value, e.Allowed, e.Mend)
}

const (
	minRTO        = 200 * time.Millisecond // TCP_RTO_MIN
	defaultRTT    = 100 * time.Microsecond
	defaultRTOMax = 120 * time.Second
	longest       = 240 * time.Hour // of a timer: fits the wheel at every HZ
)

// complete puts the defaults in and returns an [*InputError] for what no
// kernel can hold.
func (in *Input) complete(s Situation) error {
	synRetries, minSYN := 6, 1
	if s == SituationSynReceived {
		synRetries, minSYN = 5, -1
	}
	def := func(v *int, value int) {
		if *v == 0 {
			*v = value
		}
	}
	def(&in.HZ, defaultHZ)
	def(&in.Packets, 1)
	def(&in.Retries2, 15)
	def(&in.SYNRetries, synRetries)
	def(&in.SYNLinear, 4)
	if in.RTOMax == 0 {
		in.RTOMax = defaultRTOMax
	}
	if in.FinTimeout == 0 {
		in.FinTimeout = time.Minute
	}
	if in.OS == "" {
		in.OS = Linux
	}
	if in.Policy.UserTimeout < 0 {
		in.Policy.UserTimeout = 0
	}
	for _, c := range []struct {
		field          string
		value          time.Duration
		least, highest time.Duration
		mend           string
	}{
		{"idle", in.Policy.Idle, 0, longest, "give a shorter one"},
		{"interval", in.Policy.Interval, 0, longest, "give a shorter one"},
		{"user timeout", in.Policy.UserTimeout, 0, maxUserTimeout, "give a shorter one, or 0 for none"},
		{"heard", in.Heard, 0, maxAge, "give how long ago the last segment came"},
		{"sent", in.Sent, 0, maxAge, "give how long ago data was sent, or 0 if it is not known"},
		{"timer", in.TimerIn, -1 << 63, longest, "give a shorter one, or a negative one if it is not known"},
		{"timer for", in.TimerFor, 0, longest, "give a shorter one, or 0 if it is not known"},
		{"rtt", in.RTT, 0, defaultRTOMax, "give a shorter one, or 0 for a local network's"},
		{"rto", in.RTO, 0, defaultRTOMax, "give a shorter one, or 0 to have it follow from rtt"},
		{"rto max", in.RTOMax, time.Second, defaultRTOMax, "give a time in that range, or 0 for 120s"},
		{"fin timeout", in.FinTimeout, 0, longest, "give a shorter one, or 0 for 60s"},
		{"linger2", in.Linger2, -1 << 63, 2 * time.Minute, "give a shorter one, 0 for none, or a negative one for no FIN-WAIT-2"},
		{"probed for", in.ProbedFor, 0, 24 * time.Hour, "give a shorter one: from a day on nothing changes"},
	} {
		if c.value < c.least || c.value > c.highest {
			return &InputError{c.field, c.value.String(), span{max(0, c.least), c.highest}.String(), c.mend}
		}
	}
	for _, c := range []struct {
		field                  string
		value, least, greatest int
		mend                   string
	}{
		{"hz", in.HZ, minHZ, maxHZ, "give the kernel's CONFIG_HZ, or 0 for 250"},
		{"probes", in.Policy.Probes, 0, maxProbes, "give a number in that range"},
		{"retransmits", in.Retransmits, 0, 255, "give a number in that range"},
		{"backoff", in.Backoff, 0, 255, "give a number in that range"},
		{"unanswered probes", in.Probes, 0, maxProbes, "give a number in that range"},
		{"packets", in.Packets, 1, 1 << 30, "give how many segments are in flight, or 0 for 1"},
		{"retries2", in.Retries2, -1, 255, "give a number in that range, 0 for 15, or -1 for none"},
		{"syn retries", in.SYNRetries, minSYN, 127, "give a number in that range, or 0 for " + strconv.Itoa(synRetries)},
		{"syn linear timeouts", in.SYNLinear, -1, 127, "give a number in that range, 0 for 4, or -1 for none"},
		{"orphan retries", in.OrphanRetries, 0, 255, "give a number in that range; 0 is 8"},
		{"ownership", int(in.Ownership), 0, int(Orphaned), "give Usual, Held or Orphaned"},
	} {
		if c.value < c.least || c.value > c.greatest {
			return &InputError{c.field, strconv.Itoa(c.value), fmt.Sprintf("%d to %d", c.least, c.greatest), c.mend}
		}
	}
	if tick := (wheel{in.HZ}).tick(); in.Clock.Since < 0 || in.Clock.Since > tick {
		return &InputError{"clock since", in.Clock.Since.String(), span{0, tick}.String(), "give the time since the last tick"}
	}
	in.Retries2, in.SYNRetries, in.SYNLinear = max(0, in.Retries2), max(0, in.SYNRetries), max(0, in.SYNLinear)
	in.Policy = clampPolicy(in.Policy)
	in.completeRTO()
	return nil
}

// completeRTO fills in what one of RTT and RTO says about the other: the
// mean deviation of a steady connection is the least there is, 200 ms
// (tcp_rtt_estimator).
func (in *Input) completeRTO() {
	switch {
	case in.RTO == 0:
		if in.RTT == 0 {
			in.RTT = defaultRTT
		}
		in.RTO = in.RTT + minRTO
	case in.RTT == 0:
		in.RTT = max(defaultRTT, in.RTO-minRTO)
	}
	in.RTO = min(in.RTO, in.RTOMax)
}

// String is "from to to".
func (s span) String() string { return fmt.Sprintf("%v to %v", s.earliest, s.latest) }
