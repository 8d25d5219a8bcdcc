package engine

import (
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
)

// Forecast says when the kernel would give the connection up if nothing more
// came from the peer, counted from when the socket was read. ok is false when
// no rule known to us applies (data in flight, handshake, closing), or when
// the values it needs are not known.
func (c *Connection) Forecast() (f forecast.Forecast, ok bool) {
	if !c.foreseen {
		c.forecast, c.foreseeable = c.foresee()
		c.foreseen = true
	}
	return c.forecast, c.foreseeable
}

func (c *Connection) foresee() (f forecast.Forecast, ok bool) {
	s := c.Sock
	heard, told := s.Heard()
	idle := s.State == conn.Established || s.State == conn.CloseWait || s.State == conn.FinWait2 && s.Inode != 0
	switch {
	case !idle, !told, !s.Idle(), !c.KeepAliveKnown,
		s.Timer != conn.TimerNone && s.Timer != conn.TimerKeepalive,
		c.Settings.KeepAlive && !c.Known:
		return forecast.Forecast{}, false
	}
	in := forecast.Input{
		KeepAlive: c.Settings.KeepAlive, Policy: c.Settings.Policy, HZ: c.hz,
		Heard: heard, TimerIn: -1, Probes: int(s.Probes),
	}
	if s.Timer == conn.TimerKeepalive {
		in.TimerIn = time.Duration(s.TimerMS) * time.Millisecond
	}
	return forecast.Idle(in), true
}
