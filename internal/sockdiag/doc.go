// Package sockdiag lists, looks up and destroys TCP sockets over netlink
// (sock_diag(7)). It decodes into caller-owned memory and allocates nothing
// per socket.
//
// Linux only. Listing needs no privilege; SO_MARK values and MPTCP marks are
// told only with CAP_NET_ADMIN. Destroy needs CAP_NET_ADMIN over the network
// namespace and a kernel with CONFIG_INET_DIAG_DESTROY.
//
//	c, err := sockdiag.Open(nil) // the current network namespace
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	return c.Dump(ctx, sockdiag.Query{States: conn.Connections},
//		func(s *conn.Sock, _ *sockdiag.Memory) error {
//			fmt.Println(s.Local(), s.Peer(), s.State)
//			return nil
//		})
package sockdiag
