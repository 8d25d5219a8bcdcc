package conn

import "net/netip"

// Endpoints tells whether the filter selects connections between two
// addresses: Maybe where that depends on anything else. It is for packets,
// which show nothing else.
func (f *Filter) Endpoints(local, peer netip.AddrPort) Truth {
	s := Subject{Sock: &Sock{
		Family: IPv6, LocalIP: local.Addr().As16(), PeerIP: peer.Addr().As16(), LocalPort: local.Port(), PeerPort: peer.Port(),
	}}
	if local.Addr().Unmap().Is4() {
		s.Sock.Family = IPv4
	}
	t := Yes
	if f.expr != nil {
		t = endpoints(f.expr, &s)
	}
	if f.named {
		t = min(t, Maybe)
	}
	return t
}

// OnlyEndpoints reports whether addresses and ports decide the filter.
func (f *Filter) OnlyEndpoints() bool {
	return !f.named && !anyNode(f.expr, func(n node) bool { return !isEndpoint(n) })
}

// endpoints is match with every predicate but those on addresses unknown.
func endpoints(n node, s *Subject) Truth {
	switch n := n.(type) {
	case andNode:
		t := Yes
		for _, kid := range n {
			t = min(t, endpoints(kid, s))
		}
		return t
	case orNode:
		t := No
		for _, kid := range n {
			t = max(t, endpoints(kid, s))
		}
		return t
	case notNode:
		return Yes - endpoints(n.of, s)
	}
	if isEndpoint(n) {
		return n.match(s)
	}
	return Maybe
}

func isEndpoint(n node) bool {
	switch n := n.(type) {
	case hostPred, autoboundPred:
		return true
	case numPred:
		return n.field == fieldSport || n.field == fieldDport || n.field == fieldFamily
	}
	return false
}
