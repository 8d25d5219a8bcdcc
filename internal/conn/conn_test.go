package conn

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestSock(t *testing.T) {
	t.Parallel()
	v4 := netip.MustParseAddr("10.0.0.1")
	v6 := netip.MustParseAddr("fd00::1")
	for _, tt := range []struct {
		family      Family
		local, peer netip.Addr
		wantLocal   string
		wantPeer    string
	}{
		{IPv4, v4, v4.Next(), "10.0.0.1:5432", "10.0.0.2:40000"},
		{IPv6, v6, v6.Next(), "[fd00::1]:5432", "[fd00::2]:40000"},
		{IPv6, v4, v4.Next(), "[::ffff:10.0.0.1]:5432", "[::ffff:10.0.0.2]:40000"}, // an IPv4 peer of an IPv6 socket
	} {
		s := Sock{Family: tt.family, LocalIP: tt.local.As16(), PeerIP: tt.peer.As16(), LocalPort: 5432, PeerPort: 40000, NetNS: 7, Cookie: 9}
		if s.Local().String() != tt.wantLocal || s.Peer().String() != tt.wantPeer {
			t.Errorf("%s, %s, want %s, %s", s.Local(), s.Peer(), tt.wantLocal, tt.wantPeer)
		}
		if s.ID() != (ID{NetNS: 7, Cookie: 9}) || s.ID().String() != "7/9" {
			t.Errorf("%s", s.ID())
		}
	}
}

func TestHeardAndIdle(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s     Sock
		heard time.Duration
		told  bool
		idle  bool
	}{
		{Sock{LastDataRecv: 5, LastAckRecv: 7}, 0, false, true}, // without tcp_info they mean nothing
		{Sock{HasInfo: true, LastDataRecv: 5000, LastAckRecv: 7000}, 5 * time.Second, true, true},
		{Sock{HasInfo: true, LastDataRecv: 7000, LastAckRecv: 5000}, 5 * time.Second, true, true},
		{Sock{HasInfo: true, LastDataRecv: ^uint32(0), LastAckRecv: ^uint32(0)}, 4294967295 * time.Millisecond, true, true},
		{Sock{HasInfo: true, State: Listen}, 0, false, true},
		{Sock{HasInfo: true, Unacked: 1}, 0, true, false},
		{Sock{HasInfo: true, SendQueue: 1}, 0, true, false},
	} {
		if heard, told := tt.s.Heard(); heard != tt.heard || told != tt.told || tt.s.Idle() != tt.idle {
			t.Errorf("%+v: heard %v, %v, idle %v", tt.s, heard, told, tt.s.Idle())
		}
	}
}

func TestBaseRTO(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rtt, rttvar uint32 // microseconds
		want        time.Duration
	}{
		{0, 0, time.Second}, {0, 1000, time.Second}, {1, 0, 200 * time.Millisecond}, {40_000, 40_000, 200 * time.Millisecond},
		{40_000, 40_001, 200_004 * time.Microsecond}, {300_000, 50_000, 500 * time.Millisecond},
		{^uint32(0), ^uint32(0), 5 * 4294967295 * time.Microsecond}, // does not overflow
	} {
		s := Sock{RTTUS: tt.rtt, RTTVarUS: tt.rttvar, RTOUS: 120_000_000}
		if got := s.BaseRTO(); got != tt.want {
			t.Errorf("rtt %d, rttvar %d: %v, want %v", tt.rtt, tt.rttvar, got, tt.want)
		}
	}
}

func TestWaiting(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		timer   Timer
		rto     uint32 // microseconds
		backoff uint8
		want    time.Duration
	}{
		{TimerNone, 204_000, 0, 2 * time.Second}, {TimerPersist, 204_000, 9, 2 * time.Second},
		{TimerRetransmit, 204_000, 0, 2 * time.Second}, {TimerRetransmit, 816_000, 2, 2612 * time.Millisecond},
		{TimerRetransmit, 120_000_000, 11, (2000 + 204_600 + 120_000) * time.Millisecond},
		{TimerRetransmit, 0, 255, 2 * time.Second}, {TimerRetransmit, ^uint32(0), 255, (2000 + 204_600 + 245*120_000) * time.Millisecond},
	} {
		s := Sock{Timer: tt.timer, RTOUS: tt.rto, Backoff: tt.backoff, RTTUS: 100, LastDataSent: 2000}
		if got := s.Waiting(); got != tt.want {
			t.Errorf("timer %s, rto %d, backoff %d: %v, want %v", tt.timer, tt.rto, tt.backoff, got, tt.want)
		}
	}
}

// Every value has a name of its own, and one beyond the last does no harm.
func TestNames(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for v := range verdictEnd {
		if seen[v.String()] || strings.HasPrefix(v.String(), "verdict-") {
			t.Errorf("verdict %d: %q", v, v)
		}
		seen[v.String()] = true
	}
	if len(Verdicts()) != int(verdictEnd) || verdictEnd.String() != "verdict-8" {
		t.Errorf("%v, %s", Verdicts(), verdictEnd)
	}
	for _, v := range Verdicts() {
		delete(seen, v.String())
	}
	if len(seen) > 0 {
		t.Errorf("not listed: %v", seen)
	}
	for s := Established; s < stateEnd; s++ {
		if s.String() == "" || strings.HasPrefix(s.String(), "STATE-") || !AllStates.Has(s) {
			t.Errorf("state %d: %q", s, s)
		}
		if peerless := s == Listen || s == Close || s == BoundInactive; Connections.Has(s) == peerless {
			t.Errorf("%s is a connection: %v", s, !peerless)
		}
	}
	for _, s := range []State{0, stateEnd, 255} {
		if !strings.HasPrefix(s.String(), "STATE-") || AllStates.Has(s) {
			t.Errorf("state %d: %q", uint8(s), s)
		}
	}
	for n, want := range []string{"none", "retransmit", "keepalive", "time-wait", "persist", "timer-5"} {
		if got := Timer(n).String(); got != want {
			t.Errorf("timer %d: %q, want %q", n, got, want)
		}
	}
	if IPv4.String() != "ipv4" || IPv6.String() != "ipv6" {
		t.Errorf("%s, %s", IPv4, IPv6)
	}
}
