package path

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
)

// GatewayState says whether a hop's gateway answers ARP or neighbour
// discovery.
type GatewayState uint8

// The states of a gateway.
const (
	GatewayNone        GatewayState = iota // the hop has none
	GatewayOK                              // it answered a while ago, or nobody needs to ask
	GatewayFailed                          // the kernel asked, and it did not answer
	GatewayUnconfirmed                     // not known: Confirm finds out
)

// String gives "none", "ok", "failed" or "unconfirmed".
func (s GatewayState) String() string {
	switch s {
	case GatewayNone:
		return "none"
	case GatewayOK:
		return "ok"
	case GatewayFailed:
		return "failed"
	case GatewayUnconfirmed:
		return "unconfirmed"
	default:
		return fmt.Sprintf("gateway-%d", uint8(s))
	}
}

// Health is the state of our own side of a path.
type Health struct {
	Hop       Hop
	Interface string // its name, "" when it has gone
	Up        bool   // administratively
	Carrier   bool
	Gateway   GatewayState
	Home      string // why the interface of the connection's own address seems gone, ""
}

// Reason says in words why the hop itself seems gone, "" when it does not: an
// unconfirmed gateway is no reason.
func (h Health) Reason() string {
	name := conn.Printable(h.Interface)
	switch gone := goneReason(h.Hop.Interface, h.Interface, h.Up, h.Carrier); {
	case gone != "":
		return gone
	case h.Home != "":
		return h.Home
	case h.Gateway != GatewayFailed:
		return ""
	case h.Hop.Gateway.Is4():
		return fmt.Sprintf("gateway %s on %s does not answer ARP", h.Hop.Gateway, name)
	default:
		return fmt.Sprintf("gateway %s on %s does not answer neighbour discovery", h.Hop.Gateway, name)
	}
}

// goneReason says in words why an interface seems gone, "" when it does not.
func goneReason(index uint32, name string, up, carrier bool) string {
	switch printable := conn.Printable(name); {
	case name == "":
		return fmt.Sprintf("interface %d is gone", index)
	case !up:
		return fmt.Sprintf("interface %s is down", printable)
	case !carrier:
		return fmt.Sprintf("interface %s has no carrier", printable)
	}
	return ""
}

// Health tells the state of a hop as last notified. Cheap: no system call.
func (p *Paths) Health(hop Hop) Health {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.world.health(hop)
}

func (w *world) health(hop Hop) Health {
	h := Health{Hop: hop}
	l := w.links[hop.Interface]
	if l != nil {
		h.Interface, h.Up, h.Carrier = l.name, l.flags&unix.IFF_UP != 0, l.carrier
	}
	if hop.Home != 0 {
		var home link
		if l := w.links[hop.Home]; l != nil {
			home = *l
		}
		h.Home = goneReason(hop.Home, home.name, home.flags&unix.IFF_UP != 0, home.carrier)
	}
	switch {
	case !hop.Gateway.IsValid():
		return h
	case l == nil:
		h.Gateway = GatewayUnconfirmed
	case l.flags&(unix.IFF_NOARP|unix.IFF_POINTOPOINT|unix.IFF_LOOPBACK) != 0:
		h.Gateway = GatewayOK
	default:
		h.Gateway = GatewayUnconfirmed
		if n := l.neighbours[hop.Gateway]; n != nil && !n.gone {
			h.Gateway = gatewayState(n.state)
		}
	}
	return h
}

func gatewayState(nud uint16) GatewayState {
	switch {
	case nud&(unix.NUD_PERMANENT|unix.NUD_NOARP|unix.NUD_REACHABLE) != 0:
		return GatewayOK
	case nud&unix.NUD_FAILED != 0:
		return GatewayFailed
	default:
		return GatewayUnconfirmed
	}
}

// The kernel asks a neighbour three times, a second apart, before it gives it
// up (mcast_solicit, ucast_solicit, retrans_time_ms of arp(7)).
const (
	confirmTimeout = 3500 * time.Millisecond
	confirmPoll    = 20 * time.Millisecond
)

// Confirm makes the kernel ask the hop's gateway now, and waits up to 3.5 s
// for the outcome; GatewayUnconfirmed when there is none by then. A gateway
// believed reachable is asked too, since that belief outlives it by up to
// 45 s. Nobody is asked on point-to-point and no-ARP interfaces, for permanent
// entries, and when the interface is down anyway. Needs CAP_NET_ADMIN; without
// it the health is as Health knows it, but unconfirmed, and the error says so.
func (p *Paths) Confirm(ctx context.Context, hop Hop) (Health, error) {
	h := p.Health(hop)
	if h.Gateway == GatewayNone || !h.Up || !h.Carrier || p.noNeighbours(hop) {
		return h, nil
	}
	h.Gateway = GatewayUnconfirmed
	fail := func(err error) (Health, error) {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
		}
		return h, fmt.Errorf("confirm gateway %s on %s: %w", hop.Gateway, h.Interface, err)
	}
	nud, err := p.asker.neighbour(hop)
	if err != nil {
		return fail(err)
	}
	if nud&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0 {
		h.Gateway = GatewayOK
		return h, nil
	}
	if err := p.asker.solicit(hop, nud); err != nil {
		return fail(err)
	}
	deadline := time.After(confirmTimeout)
	poll := time.NewTicker(confirmPoll)
	defer poll.Stop()
	for {
		if nud, err = p.asker.neighbour(hop); err != nil {
			return fail(err)
		}
		if s := gatewayState(nud); s != GatewayUnconfirmed {
			h = p.Health(hop) // the interface may have gone meanwhile
			h.Gateway = s
			return h, nil
		}
		select {
		case <-ctx.Done():
			return fail(ctx.Err())
		case <-deadline:
			return h, nil
		case <-poll.C:
		}
	}
}

func (p *Paths) noNeighbours(hop Hop) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	l := p.world.links[hop.Interface]
	return l == nil || l.flags&(unix.IFF_NOARP|unix.IFF_POINTOPOINT|unix.IFF_LOOPBACK) != 0
}

// neighbour asks for the state of the gateway's entry, NUD_NONE when there is
// none.
func (c *rtnl) neighbour(hop Hop) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.neighbourRequest(unix.RTM_GETNEIGH, 0, hop, 0, 0)
	m, err := c.one()
	switch {
	case errors.Is(err, unix.ENOENT):
		return unix.NUD_NONE, nil
	case err != nil:
		return 0, err
	case m.kind != unix.RTM_NEWNEIGH || len(m.data) < unix.SizeofNdMsg:
		return 0, errMalformed
	}
	return binary.NativeEndian.Uint16(m.data[8:]), nil
}

// solicit makes the kernel ask the gateway. An entry with a link-layer address
// keeps it and is asked there; else the kernel asks everybody, as it would
// before sending a packet (NTF_USE).
func (c *rtnl) solicit(hop Hop, nud uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if nud&(unix.NUD_PROBE|unix.NUD_INCOMPLETE) != 0 {
		return nil // being asked
	}
	if nud&nudValid != 0 {
		c.neighbourRequest(unix.RTM_NEWNEIGH, unix.NLM_F_ACK|unix.NLM_F_REPLACE, hop, unix.NUD_PROBE, 0)
		// These say that the entry has gone or failed since we looked.
		if _, err := c.one(); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	c.neighbourRequest(unix.RTM_NEWNEIGH, unix.NLM_F_ACK|unix.NLM_F_CREATE, hop, unix.NUD_NONE, unix.NTF_USE)
	_, err := c.one()
	return err
}

func (c *rtnl) neighbourRequest(kind, flags uint16, hop Hop, nud uint16, ntf byte) {
	c.seq++
	b := begin(c.out, kind, flags, c.seq)
	b = append(b, family(hop.Gateway), 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, hop.Interface)
	b = binary.NativeEndian.AppendUint16(b, nud)
	b = append(b, ntf, 0)
	c.out = finish(appendAddr(b, unix.NDA_DST, hop.Gateway))
}
