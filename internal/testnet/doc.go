// Package testnet builds hosts in throw-away network namespaces and joins
// them by links that can be cut, made lossy, unplugged, or led through a NAT
// that forgets. The demo command and the tests of other packages run on it.
//
// A link is two veth pairs whose far ends are ports of a bridge in a
// namespace of its own, the wire. What is dropped is dropped there, by
// nftables on the ingress of the ports: the hosts see no ICMP, no failing
// neighbour and no local error, only silence. ARP, neighbour discovery and
// ICMP errors always pass.
//
// Linux only, with veth, bridge and nftables (netdev family) in the kernel.
// Needs CAP_SYS_ADMIN and CAP_NET_ADMIN, or a user namespace that has them:
// [Main] and [Reexec] make one. Namespaces have no name and no process: they
// end with the descriptors of [Net] and the sockets opened in them.
//
//	net, err := testnet.New(ctx)
//	defer net.Close()
//	a, err := net.Host("a")
//	b, err := net.Host("b")
//	link, err := net.Connect(a, b)
//	listener, err := b.Listen(ctx, "tcp", netip.AddrPortFrom(link.IPv4(b), 5432).String())
//	conn, err := a.Dial(ctx, "tcp", listener.Addr().String())
//	err = link.Cut() // conn is half-open now
package testnet
