package engine

import (
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
)

// Forecast says when the kernel would give the connection up if nothing more
// came from the peer, counted from Snapshot.TakenAt. Expected is set where what
// the kernel tells makes one instant certain, for which its tick counter must
// be readable (root). ok is false when no rule known to us applies, or when
// the values it needs are not known.
//
// Without BPF an orphan's user timeout cannot be read; it is taken for none. So are
// TCP_SYNCNT, TCP_LINGER2, TCP_RTO_MAX_MS and TCP_THIN_LINEAR_TIMEOUTS of a
// socket: the host's values count.
func (c *Connection) Forecast() (f forecast.Forecast, ok bool) {
	if !c.foreseen {
		c.forecast, c.foreseeable = c.foresee()
		c.foreseen = true
	}
	return c.forecast, c.foreseeable
}

func (c *Connection) foresee() (f forecast.Forecast, ok bool) {
	if c.KeepAliveKnown && !c.Settings.KeepAlive && c.Sock.Timer == conn.TimerNone && c.open() {
		return forecast.Idle(forecast.Input{HZ: c.snap.kernel.hz}), true // never: the most common, and the quickest
	}
	situation, in, ok := c.situation()
	if !ok {
		return forecast.Forecast{}, false
	}
	in.HZ = c.snap.kernel.hz
	return c.snap.kernel.foresee(c.read, situation, in)
}

// blind reports whether the kernel would never give the connection up.
func (c *Connection) blind() (blind, known bool) {
	if !conn.Connections.Has(c.Sock.State) || c.Sock.State == conn.TimeWait {
		return false, true
	}
	f, known := c.Forecast()
	return known && !f.GivesUp, known
}

// situation is what the connection is in the middle of, if that is one that
// can be forecast.
func (c *Connection) situation() (forecast.Situation, forecast.Input, bool) {
	s := c.Sock
	held := s.Inode != 0
	limits, told := c.snap.kernel.limits[s.NetNS]
	in := limits.input()
	in.IPv6 = s.Family == conn.IPv6 && !s.Peer().Addr().Is4In6()
	in.Policy.UserTimeout = c.Settings.UserTimeout
	in.Retransmits, in.TimerIn = int(s.Retransmits), timerIn(s)
	switch s.Timer {
	case conn.TimerNone, conn.TimerKeepalive:
		if s.State == conn.FinWait2 && !held {
			return forecast.SituationFinWait2, in, told && s.Timer == conn.TimerKeepalive
		}
		return c.idle()
	case conn.TimerTimeWait:
		// A socket that nobody holds is one as small as those of TIME-WAIT. What
		// is above a TIME-WAIT it waits for after that.
		const timeWait = time.Minute // TCP_TIMEWAIT_LEN
		if in.FinTimeout > timeWait {
			in.FinTimeout -= timeWait
		}
		return forecast.SituationFinWait2, in, told && s.State == conn.FinWait2
	case conn.TimerPersist:
		in.Backoff, in.RTO, in.RTT = int(s.Backoff), us(s.RTOUS), us(s.RTTUS)
		if in.Ownership = forecast.Held; !held && fin(s.State) {
			in.Ownership = forecast.Orphaned
		}
		return forecast.SituationZeroWindow, in, told && (c.Known || in.Ownership == forecast.Orphaned)
	case conn.TimerRetransmit:
		situation, ok := c.waiting(&in)
		return situation, in, told && ok
	}
	return "", in, false
}

// idle is a connection with nothing in flight.
func (c *Connection) idle() (situation forecast.Situation, in forecast.Input, ok bool) {
	s := c.Sock
	heard, _ := s.Heard()
	if !c.open() || !c.KeepAliveKnown || c.Settings.KeepAlive && !c.Known {
		return "", in, false
	}
	in = forecast.Input{KeepAlive: c.Settings.KeepAlive, Policy: c.Settings.Policy, Heard: heard, TimerIn: -1, Probes: int(s.Probes)}
	if s.Timer == conn.TimerKeepalive {
		in.TimerIn = timerIn(s)
	}
	return forecast.SituationIdle, in, true
}

// open: it has nothing in flight, and may stay so.
func (c *Connection) open() bool {
	s := c.Sock
	return s.HasInfo && s.Idle() && (s.State == conn.Established || s.State == conn.CloseWait || s.State == conn.FinWait2 && s.Inode != 0)
}

// waiting is a connection whose retransmission timer is pending.
func (c *Connection) waiting(in *forecast.Input) (situation forecast.Situation, ok bool) {
	s := c.Sock
	switch s.State {
	case conn.SynSent:
		return forecast.SituationSynSent, c.Known
	case conn.SynReceived, conn.NewSynReceived:
		in.SYNRetries = limitOr(c.snap.kernel.limits[s.NetNS].synackRetries)
		in.RTOMax = c.snap.kernel.limits[s.NetNS].synackMax
		return forecast.SituationSynReceived, !s.HasInfo // not yet a socket of its own
	case conn.Established, conn.CloseWait:
		situation, ok = forecast.SituationInFlight, c.Known
		in.Sent = ms(s.LastDataSent)
	case conn.FinWait1, conn.LastAck, conn.Closing:
		situation, ok = forecast.SituationFinWait1, c.Known || s.Inode == 0
		if s.State == conn.LastAck {
			situation = forecast.SituationLastAck
		}
		if in.Ownership = forecast.Held; s.Inode == 0 {
			in.Ownership = forecast.Orphaned
		}
		if s.SendQueue > 1 { // not the FIN alone
			in.Sent = ms(s.LastDataSent)
		}
	default:
		return "", false
	}
	// What waits for the window to open again is not modelled, nor is backoff
	// that errors of the network take back (tcp_ld_RTO_revert) or a thin stream
	// is spared (tcp_retransmit_timer), and a timer of an orphan that is short
	// of its timeout shows a user timeout.
	const thin = 4 // packets in flight (tcp_stream_is_thin)
	switch rto := us(s.RTOUS); {
	case !s.HasInfo || s.Unacked == 0 || s.HasWindow && s.SendWindow == 0 || s.Backoff != s.Retransmits:
		return "", false
	case s.State == conn.Established && s.Unacked < thin && c.snap.kernel.limits[s.NetNS].thinLinear:
		return "", false
	case !c.Known && s.Retransmits > 0 && in.Sent > 0 && in.Sent+in.TimerIn < rto-20*time.Millisecond && s.TimerMS > 0:
		return "", false
	default:
		in.Backoff, in.Packets = int(s.Backoff), int(s.Unacked)
		in.RTT, in.RTO = us(s.RTTUS), rto>>min(s.Backoff, 63)
		if limit := c.snap.kernel.limits[s.NetNS].rtoMax; s.Backoff > 0 && rto >= limit {
			// It has grown to the limit, and no longer tells from what.
			in.RTO = in.RTT + max(200*time.Millisecond, 4*us(s.RTTVarUS))
		}
	}
	return situation, ok
}

// timerIn is never 0: a timer that is due, and late, is almost so.
func timerIn(s *conn.Sock) time.Duration { return max(ms(s.TimerMS), time.Nanosecond) }

// fin tells whether our FIN is on its way.
func fin(s conn.State) bool { return s == conn.FinWait1 || s == conn.LastAck || s == conn.Closing }

func ms(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }

func us(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
