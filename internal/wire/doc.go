// Package wire reads keepalive from packets: the probes of a TCP connection,
// their answers, the silence that follows a lost peer, and what ends it.
//
// Packets come from a live [Capture] (Linux, CAP_NET_RAW in the namespace), or
// from a pcap or pcapng file ([NewReader], any OS). [Parse] takes a packet
// apart, a [Tracker] makes events of the segments:
//
//	t := wire.NewTracker(wire.TrackerOptions{})
//	err := reader.Each(ctx, func(s *wire.Segment) error {
//		t.Feed(s, func(e *wire.Event) { fmt.Println(e.Time, e.Local, e.Kind, e.N) })
//		return nil
//	})
//
// What it tells is what was seen where the packets were captured: an answer
// that is lost between there and the prober is an answer all the same.
package wire
