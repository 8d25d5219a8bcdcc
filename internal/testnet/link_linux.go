package testnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link joins two hosts as neighbours: each sees the other's addresses on its
// own network. Safe for concurrent use.
type Link struct {
	net  *Net
	ends [2]end
	set  *nftables.Set // of the TCP ports that are cut

	// Guarded by net.mu.
	cut   [2]bool    // what comes from this end is dropped
	loss  [2]float64 // percent of what comes from this end
	ports map[uint16]bool
}

// end is one host's side of a link.
type end struct {
	host       *Host
	dev        string // the host's interface
	devIndex   int
	portIndex  int // of the port in the wire's namespace
	ipv4, ipv6 netip.Addr
	chain      *nftables.Chain // on the ingress of the port: what the host sends
}

// Connect joins a and b by a new link that works when Connect returns. The
// link's networks are 10.x.y.0/24 and fd00:…::/64; a has the address 1 and b 2.
func (n *Net) Connect(a, b *Host) (*Link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.connect(a, b)
	if err != nil {
		return nil, fmt.Errorf("connect hosts %s and %s: %w", a.name, b.name, needCapability(err))
	}
	n.links = append(n.links, l)
	return l, nil
}

func (n *Net) connect(a, b *Host) (*Link, error) {
	if n.closed {
		return nil, net.ErrClosed
	}
	if err := n.ctx.Err(); err != nil {
		return nil, err
	}
	if a.net != n || b.net != n || a == b {
		return nil, errors.New("not two hosts of this net")
	}
	i := len(n.links)
	if i > 0xffff {
		return nil, errors.New("too many links")
	}
	name := strconv.Itoa(i)
	snooping := false // would hold back neighbour solicitations
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snooping}
	bridge.Name = "br" + name
	if err := n.wire.nl.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	if err := n.wire.nl.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("set bridge up: %w", err)
	}
	l := &Link{net: n, ports: map[uint16]bool{}}
	for s, h := range []*Host{a, b} {
		port := "p" + name + "ab"[s:s+1]
		if err := l.attach(s, h, bridge.Index, port, uint16(i)); err != nil {
			return nil, err
		}
		l.ends[s].chain = n.nft.AddChain(&nftables.Chain{
			Table: n.table, Name: port, Device: port, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
		})
	}
	// The library numbers sets from a variable it shares unlocked; the
	// number means something within one batch only.
	l.set = &nftables.Set{Table: n.table, ID: 1, Name: "ports" + name, KeyType: nftables.TypeInetService}
	if err := n.nft.AddSet(l.set, nil); err != nil {
		return nil, fmt.Errorf("make set of ports: %w", err)
	}
	if err := l.program(); err != nil {
		return nil, err
	}
	return l, n.await("link", func() (bool, error) {
		for _, e := range l.ends {
			dev, devErr := interfaceFlags(e.host, e.devIndex)
			port, portErr := interfaceFlags(n.wire, e.portIndex)
			if err := errors.Join(devErr, portErr); err != nil || dev != running || port != running {
				return false, err
			}
		}
		return true, nil
	})
}

// attach gives h an interface on the bridge.
func (l *Link) attach(s int, h *Host, bridge int, port string, number uint16) error {
	e := &l.ends[s]
	e.host, e.dev = h, "eth"+strconv.Itoa(h.devs)
	e.ipv4 = netip.AddrFrom4([4]byte{10, byte(number >> 8), byte(number), byte(s + 1)})
	e.ipv6 = netip.AddrFrom16([16]byte{0: 0xfd, 6: byte(number >> 8), 7: byte(number), 15: byte(s + 1)})
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.MasterIndex = port, bridge
	veth.PeerName, veth.PeerNamespace = e.dev, netlink.NsFd(h.ns.Fd())
	wire := l.net.wire.nl
	if err := wire.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth: %w", err)
	}
	h.devs++
	e.portIndex = veth.Index
	if err := wire.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set port up: %w", err)
	}
	dev, err := h.nl.LinkByName(e.dev)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", e.dev, err)
	}
	e.devIndex = dev.Attrs().Index
	if err := h.nl.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set interface up: %w", err)
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(e.ipv4, 24), netip.PrefixFrom(e.ipv6, 64)} {
		addr := &netlink.Addr{
			IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD, // usable at once
		}
		if err := h.nl.AddrAdd(dev, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// IPv4 is h's address on the link, the zero Addr when h is not on it.
func (l *Link) IPv4(h *Host) netip.Addr {
	if s, err := l.side(h); err == nil {
		return l.ends[s].ipv4
	}
	return netip.Addr{}
}

// IPv6 is h's address on the link, the zero Addr when h is not on it.
func (l *Link) IPv6(h *Host) netip.Addr {
	if s, err := l.side(h); err == nil {
		return l.ends[s].ipv6
	}
	return netip.Addr{}
}

// Interface is the name and index of h's interface on the link, "" and 0
// when h is not on it.
func (l *Link) Interface(h *Host) (name string, index int) {
	if s, err := l.side(h); err == nil {
		return l.ends[s].dev, l.ends[s].devIndex
	}
	return "", 0
}

func (l *Link) side(h *Host) (int, error) {
	for s, e := range l.ends {
		if e.host == h {
			return s, nil
		}
	}
	return 0, fmt.Errorf("host %s is not on the link between %s and %s", h.name, l.ends[0].host.name, l.ends[1].host.name)
}
