// Package zeo pings ZEO servers, the storage servers of ZODB, as ZEOKeepAlive
// did: by a call of get_info over a connection of its own.
//
//	client, err := zeo.Dial(ctx, "10.0.0.9:8100", zeo.Options{Storage: "1"})
//	defer client.Close()
//	monitor.Add("zeo", client)
//
// The client speaks the protocols Z5 (pickle) and M5 (msgpack) of ZEO 5 and 6,
// whichever the server offers. It registers for reading only and never changes
// anything. What the server sends by itself, such as invalidations, it reads
// and drops, and counts as signs of life ([Client.Heard]).
//
// ZEO's own keep-alive, a reply with the number -1, is not answered, so that it
// proves nothing; and a server may hold a commit lock for a client that is
// gone: package keepalive, on the server's side, is against that.
//
// Pickles are read by a machine of a few opcodes that makes numbers, text,
// bytes, tuples, lists and dictionaries, and refuses all others. Nothing is
// ever called or imported for the server.
//
// Works on every OS, with no privileges.
package zeo
