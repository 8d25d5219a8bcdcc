package path

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"deadpeer/internal/netns"
)

// Hop is the first step of a path: the interface and the gateway behind it.
// From behind a gateway answers may come in another way: most likely by the
// interface that has the connection's own address. Hops are comparable.
type Hop struct {
	Interface uint32     // index
	Gateway   netip.Addr // invalid when the peer is on the link itself
	Home      uint32     // index of that interface where it is another, else 0
}

// RouteKey is what of a connection, besides its peer, the kernel chooses a
// route by. The zero RouteKey is that of a connection of root, yet to be made.
type RouteKey struct {
	Local     netip.Addr // the connection's own address
	Interface uint32     // index of the interface the socket is bound to
	Mark      uint32     // SO_MARK
	UID       uint32     // owner of the socket
}

// Route is the kernel's choice for TCP. Where the ports of a connection decide
// (rules with ports; multipath with fib_multipath_hash_policy 1), it is that of
// a connection without any.
type Route struct {
	Hop     Hop
	Local   bool // the peer's address is one of this host's own: both ends are here
	Missing bool // no route, an unreachable one, or Local no longer is an address of this host
}

// Paths watches one network namespace. Safe for concurrent use.
type Paths struct {
	name  string
	asker *rtnl // of Route and Confirm

	mu     sync.RWMutex
	world  *world
	epoch  uint64 // moves when a route may have changed
	routes map[key]Route

	watcher *watcher
}

// Open begins to watch a namespace; ctx ends the first look at it. The handle
// is needed only during the call. Close the Paths to end watching, and to let
// go of the namespace. Needs CAP_SYS_ADMIN to enter one other than the
// caller's (setns(2)).
func Open(ctx context.Context, ns *netns.NS) (*Paths, error) {
	p := &Paths{name: ns.Name(), world: newWorld(0), routes: map[key]Route{}}
	err := ns.Do(func() (err error) {
		if p.asker, err = dial(); err != nil {
			return err
		}
		p.watcher, err = newWatcher(p)
		return err
	})
	if err == nil {
		err = p.watcher.look(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch paths of network namespace %s: %w", ns.Name(), err), p.release())
	}
	p.watcher.ended.Go(p.watcher.run)
	return p, nil
}

// Close ends the watching.
func (p *Paths) Close() error {
	if err := p.watcher.stop(); errors.Is(err, os.ErrClosed) {
		return nil // closed before
	}
	return p.release()
}

func (p *Paths) release() error {
	var errs []error
	if p.asker != nil {
		errs = append(errs, p.asker.close())
	}
	if p.watcher != nil {
		errs = append(errs, p.watcher.release())
	}
	return errors.Join(errs...)
}

// Generation is a number that rises when something happened that may have
// spoilt a question asked over the hop: its interface, or that of the own
// address, changed state, master or link-layer address, lost or got an address
// or a route; the gateway (for
// peers on the link: any neighbour) answers from another link-layer address or
// came back after it had failed; the route of a peer that Route was asked for
// left the hop; or notifications were lost. A neighbour that stops answering
// does not count, nor does the refresh of an address or a route: the former
// may be the dead peer itself. Cheap: no system call.
func (p *Paths) Generation(hop Hop) uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.world.generation(hop)
}

// Route asks the kernel which way packets to peer take (RTM_GETROUTE), and
// remembers the answer for as long as nothing changes. IPv4-mapped IPv6
// addresses are IPv4. A missing route is no error.
func (p *Paths) Route(peer netip.Addr, from RouteKey) (Route, error) {
	from.Local = from.Local.Unmap().WithZone("")
	k := key{peer: peer.Unmap().WithZone(""), from: from}
	if !k.peer.IsValid() {
		return Route{}, errors.New("ask route: no address of the peer")
	}
	for range 3 {
		p.mu.RLock()
		r, ok := p.routes[k]
		epoch := p.epoch
		p.mu.RUnlock()
		if ok {
			return r, nil
		}
		r, err := p.ask(p.asker, k)
		if err != nil {
			return Route{}, fmt.Errorf("ask route to %s: %w", peer, err)
		}
		p.mu.Lock()
		if p.epoch == epoch {
			p.remember(k, r)
			p.mu.Unlock()
			return r, nil
		}
		p.mu.Unlock() // this may be how it was before the change: ask again
	}
	r, err := p.ask(p.asker, k)
	if err != nil {
		return Route{}, fmt.Errorf("ask route to %s: %w", peer, err)
	}
	return r, nil
}

// ask asks for one route, without remembering it.
func (p *Paths) ask(c *rtnl, k key) (Route, error) {
	r, err := c.route(k)
	if err == nil && r.Hop.Gateway.IsValid() && k.from.Interface == 0 {
		p.mu.RLock()
		r.Hop.Home = p.world.home(k.from.Local, r.Hop.Interface)
		p.mu.RUnlock()
	}
	return r, err
}

// maxRoutes bounds the memory for routes, to some 40 MB.
const maxRoutes = 1 << 18

// remember adds to the cache, in which an arbitrary other makes room.
func (p *Paths) remember(k key, r Route) {
	if len(p.routes) >= maxRoutes {
		for other := range p.routes {
			delete(p.routes, other)
			break
		}
	}
	p.routes[k] = r
}

// key is all that the kernel is asked a route by.
type key struct {
	peer netip.Addr
	from RouteKey
}

// route asks for one route, but for Hop.Home.
func (c *rtnl) route(k key) (Route, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	local := k.from.Local
	if !local.IsValid() || local.IsUnspecified() || local.Is4() != k.peer.Is4() {
		local = netip.Addr{}
	}
	// Only for IPv4 does the kernel itself refuse a source that is not ours
	// (ip_route_output_key_hash_rcu).
	if local.Is6() && !local.IsLinkLocalUnicast() {
		ours, err := c.ask(local, netip.Addr{}, k.from)
		if err == nil && !ours.Local && k.from.Interface != 0 {
			ours, err = c.ask(local, netip.Addr{}, RouteKey{Mark: k.from.Mark, UID: k.from.UID})
		}
		if err != nil || !ours.Local {
			return Route{Missing: err == nil}, err
		}
	}
	return c.ask(k.peer, local, k.from)
}

func (c *rtnl) ask(peer, local netip.Addr, from RouteKey) (Route, error) {
	c.seq++
	b := begin(c.out, unix.RTM_GETROUTE, 0, c.seq)
	b = append(b, family(peer), byte(peer.BitLen()), byte(local.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendAddr(b, unix.RTA_DST, peer)
	if local.IsValid() {
		b = appendAddr(b, unix.RTA_SRC, local)
	}
	if from.Interface != 0 {
		b = appendUint32(b, unix.RTA_OIF, from.Interface)
	}
	if from.Mark != 0 {
		b = appendUint32(b, unix.RTA_MARK, from.Mark)
	}
	b = appendUint32(b, unix.RTA_UID, from.UID) // without it, the caller's
	b = appendByte(b, unix.RTA_IP_PROTO, unix.IPPROTO_TCP)
	c.out = finish(b)
	m, err := c.one()
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETDOWN),
		errors.Is(err, unix.EACCES), // prohibit
		errors.Is(err, unix.EINVAL), // blackhole, or the source is not ours
		errors.Is(err, unix.ENODEV): // the interface the socket is bound to has gone
		return Route{Missing: true}, nil
	case err != nil:
		return Route{}, err
	}
	return parseRoute(m)
}

// parseRoute reads the answer to RTM_GETROUTE.
func parseRoute(m message) (Route, error) {
	if m.kind != unix.RTM_NEWROUTE || len(m.data) < unix.SizeofRtMsg {
		return Route{}, errMalformed
	}
	var r Route
	switch m.data[7] { // rtm_type
	case unix.RTN_LOCAL:
		r.Local = true
	case unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return Route{Missing: true}, nil
	}
	for kind, v := range attributes(m.data[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_OIF:
			r.Hop.Interface, _ = uint32Of(v)
		case unix.RTA_GATEWAY:
			r.Hop.Gateway, _ = addrOf(m.data[0], v)
		case unix.RTA_VIA: // struct rtvia: a gateway of the other family (RFC 8950)
			if len(v) > 2 {
				r.Hop.Gateway, _ = addrOf(byte(binary.NativeEndian.Uint16(v)), v[2:])
			}
		}
	}
	return r, nil
}
