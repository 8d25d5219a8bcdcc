// Package path tells where the packets of a connection leave this host, and
// whether anything has changed there: a question that went unanswered while
// our own link, address, route or gateway changed says nothing of the peer.
// Linux only (the package is empty elsewhere); everything comes from rtnetlink
// (rtnetlink(7)) of one network namespace.
//
// Looking needs no privilege. [Open] for another namespace needs CAP_SYS_ADMIN
// to enter it, [Paths.Confirm] needs CAP_NET_ADMIN.
//
//	paths, err := path.Open(ctx, ns)
//	defer paths.Close()
//	route, err := paths.Route(peer, path.RouteKey{Local: local})
//	before := paths.Generation(route.Hop)
//	// ask, and wait
//	spoilt := paths.Generation(route.Hop) != before
//
// Notifications arrive within microseconds, but after the event: judge no
// sooner than some milliseconds after the last question, as the time given to
// an answer does anyway.
package path
