package path

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// changes is the set of routes that may come out differently now. The zero
// value is empty.
type changes struct {
	ipv4, ipv6 bool
	prefixes   map[netip.Prefix]struct{}
	lengths    [129]bool // those that occur in prefixes
	interfaces map[uint32]struct{}
}

// maxPrefixes is beyond what is worth telling apart.
const maxPrefixes = 4096

func (c *changes) empty() bool {
	return !c.ipv4 && !c.ipv6 && len(c.prefixes) == 0 && len(c.interfaces) == 0
}

func (c *changes) addFamily(family byte) {
	c.ipv4 = c.ipv4 || family == unix.AF_INET
	c.ipv6 = c.ipv6 || family == unix.AF_INET6
}

func (c *changes) addInterface(index uint32) {
	if c.interfaces == nil {
		c.interfaces = map[uint32]struct{}{}
	}
	c.interfaces[index] = struct{}{}
}

func (c *changes) addPrefix(p netip.Prefix) {
	if len(c.prefixes) >= maxPrefixes {
		c.addFamily(family(p.Addr()))
		return
	}
	if c.prefixes == nil {
		c.prefixes = map[netip.Prefix]struct{}{}
	}
	c.prefixes[p] = struct{}{}
	c.lengths[p.Bits()] = true
}

// add adds the other set.
func (c *changes) add(other *changes) {
	c.ipv4, c.ipv6 = c.ipv4 || other.ipv4, c.ipv6 || other.ipv6
	for p := range other.prefixes {
		c.addPrefix(p)
	}
	for i := range other.interfaces {
		c.addInterface(i)
	}
}

// affects reports whether the route to a peer is in the set.
func (c *changes) affects(k key, r Route) bool {
	if k.peer.Is4() && c.ipv4 || k.peer.Is6() && c.ipv6 {
		return true
	}
	if _, ok := c.interfaces[r.Hop.Interface]; ok {
		return true
	}
	return c.covers(k.peer) || c.covers(k.from.Local)
}

func (c *changes) covers(a netip.Addr) bool {
	if len(c.prefixes) == 0 {
		return false
	}
	for bits := range a.BitLen() + 1 {
		if c.lengths[bits] {
			if p, err := a.Prefix(bits); err == nil {
				if _, ok := c.prefixes[p]; ok {
					return true
				}
			}
		}
	}
	return false
}
