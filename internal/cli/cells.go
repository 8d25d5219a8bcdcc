package cli

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

func verdictCell(_ *table, b []byte, c *engine.Connection) []byte {
	return append(b, c.Judgement.Verdict.String()...)
}

func stateCell(_ *table, b []byte, c *engine.Connection) []byte {
	return append(b, c.Sock.State.String()...)
}

func localCell(_ *table, b []byte, c *engine.Connection) []byte { return appendAddr(b, c.Sock.Local()) }

func peerCell(_ *table, b []byte, c *engine.Connection) []byte {
	if c.Sock.State == conn.Listen {
		return append(b, '-')
	}
	return appendAddr(b, c.Sock.Peer())
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).AppendTo(b)
}

// ownerCell names the first owner and counts the others.
func ownerCell(t *table, b []byte, c *engine.Connection) []byte {
	if len(c.Owners) == 0 {
		return append(b, '-')
	}
	o := c.Owners[0]
	b = append(b, t.name(c, o.PID)...)
	b = append(b, '[')
	b = strconv.AppendInt(b, int64(o.PID), 10)
	b = append(b, ']')
	if n := len(c.Owners) - 1; n > 0 {
		b = append(b, '+')
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return b
}

func (t *table) name(c *engine.Connection, pid int32) string {
	if pid == t.owner { // neighbours are alike
		return t.named
	}
	name, ok := t.names[pid]
	if !ok {
		if p := c.Process(pid); p != nil {
			name = conn.Printable(p.Comm)
		}
		t.names[pid] = name
	}
	t.owner, t.named = pid, name
	return name
}

func heardCell(_ *table, b []byte, c *engine.Connection) []byte {
	if d, ok := c.Sock.Heard(); ok {
		return appendSpan(b, d)
	}
	return append(b, '-')
}

// appendSpan is verdict.Duration without allocation, in one unit or two.
func appendSpan(b []byte, d time.Duration) []byte {
	two := func(x int64, unit byte, y int64, small byte) []byte {
		b = append(strconv.AppendInt(b, x, 10), unit)
		if y == 0 {
			return b
		}
		return append(strconv.AppendInt(b, y, 10), small)
	}
	s := int64(d / time.Second)
	switch {
	case d < time.Second:
		return append(strconv.AppendInt(b, d.Milliseconds(), 10), "ms"...)
	case s < 10:
		b = strconv.AppendInt(b, s, 10)
		if tenth := int64(d/(100*time.Millisecond)) % 10; tenth > 0 {
			b = strconv.AppendInt(append(b, '.'), tenth, 10)
		}
		return append(b, 's')
	case s < 100:
		return append(strconv.AppendInt(b, s, 10), 's')
	case s < 3600:
		return two(s/60, 'm', s%60, 's')
	case s < 86400:
		return two(s/3600, 'h', s%3600/60, 'm')
	}
	return two(s/86400, 'd', s%86400/3600, 'h')
}

func span(d time.Duration) string { return string(appendSpan(nil, d)) }

// originCell says who chose the policy.
func originCell(_ *table, b []byte, c *engine.Connection) []byte {
	if c.Origin == engine.OriginUnknown {
		return append(b, '?')
	}
	return append(b, c.Origin.String()...)
}

// keepaliveCell shows idle/interval×probes, or what is known without them.
func keepaliveCell(_ *table, b []byte, c *engine.Connection) []byte {
	switch s := c.Settings; {
	case c.Sock.State == conn.Listen:
		return append(b, '-')
	case !c.KeepAliveKnown:
		return append(b, '?')
	case !s.KeepAlive:
		b = append(b, "off"...)
	case !c.Known:
		return append(b, "on"...)
	default:
		b = appendSpan(b, s.Idle)
		b = append(b, '+')
		b = strconv.AppendInt(b, int64(s.Probes), 10)
		b = append(b, "×"...)
		b = appendSpan(b, s.Interval)
	}
	if ut := c.Settings.UserTimeout; c.Known && ut > 0 {
		b = append(b, ", ut "...)
		b = appendSpan(b, ut)
	}
	return b
}

func forecastCell(_ *table, b []byte, c *engine.Connection) []byte {
	switch f, ok := c.Forecast(); {
	case !ok:
		return append(b, '?')
	case !f.GivesUp:
		return append(b, "never"...)
	default:
		return appendSpan(b, soonest(f))
	}
}

// soonest is the one instant of a forecast that has one, else the earliest.
func soonest(f forecast.Forecast) time.Duration {
	if f.Expected != 0 {
		return f.Expected
	}
	return f.Earliest
}

func timerCell(_ *table, b []byte, c *engine.Connection) []byte {
	b = append(b, c.Sock.Timer.String()...)
	if c.Sock.Timer != conn.TimerNone {
		b = append(b, ' ')
		b = appendSpan(b, time.Duration(c.Sock.TimerMS)*time.Millisecond)
	}
	if n := c.Sock.Retransmits; n > 0 { // how often it has gone off in vain
		b = append(b, " ×"...)
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	return b
}

func rttCell(_ *table, b []byte, c *engine.Connection) []byte {
	if c.Sock.RTTUS == 0 {
		return append(b, '-')
	}
	b = strconv.AppendFloat(b, float64(c.Sock.RTTUS)/1000, 'f', 2, 64)
	return append(b, "ms"...)
}

func sendCell(_ *table, b []byte, c *engine.Connection) []byte {
	return strconv.AppendUint(b, uint64(c.Sock.SendQueue), 10)
}

func recvCell(_ *table, b []byte, c *engine.Connection) []byte {
	return strconv.AppendUint(b, uint64(c.Sock.RecvQueue), 10)
}

// memoryCell adds up what the socket has allocated.
func memoryCell(_ *table, b []byte, c *engine.Connection) []byte {
	if c.Memory == nil {
		return append(b, '-')
	}
	return strconv.AppendUint(b, uint64(c.Memory.ReceiveAllocated)+uint64(c.Memory.SendQueued)+uint64(c.Memory.Forward), 10)
}

func unitCell(_ *table, b []byte, c *engine.Connection) []byte {
	if len(c.Owners) > 0 {
		if p := c.Process(c.Owners[0].PID); p != nil && p.Unit != "" {
			return append(b, conn.Printable(p.Unit)...)
		}
	}
	return append(b, '-')
}

// namespaceCell is what --netns takes for the namespace.
func namespaceCell(_ *table, b []byte, c *engine.Connection) []byte {
	name := strings.TrimPrefix(strings.TrimPrefix(c.Namespace(), "pid "), "/run/netns/")
	return append(b, conn.Printable(name)...)
}

func netnsCell(_ *table, b []byte, c *engine.Connection) []byte {
	return strconv.AppendUint(b, uint64(c.Sock.NetNS), 10)
}

func cookieCell(_ *table, b []byte, c *engine.Connection) []byte {
	return strconv.AppendUint(b, c.Sock.Cookie, 10)
}

func reasonCell(_ *table, b []byte, c *engine.Connection) []byte { return append(b, c.Reason()...) }

func outcomeCell(_ *table, b []byte, c *engine.Connection) []byte {
	switch o := c.Outcome; {
	case o == nil:
		return append(b, '-')
	case o.Done && o.Via == engine.ViaDatabase:
		return append(b, "released by the database"...)
	case o.Done:
		b = append(b, participle(o.Action)...)
		if o.Error != "" {
			b = append(append(b, ", "...), o.Error...)
		}
		return b
	case o.Planned != nil:
		return append(b, "gets "+policyCell(*o.Planned)...)
	case o.Error == "":
		return append(b, "planned"...)
	default:
		return append(b, o.Error...)
	}
}

// participle is the word for an action that is done.
func participle(action string) string {
	switch action {
	case "attach":
		return "attached"
	case "detach":
		return "put back"
	}
	return "released"
}
