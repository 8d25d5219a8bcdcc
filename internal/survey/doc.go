// Package survey finds out after how long idle the path to a server forgets a
// TCP connection: a NAT, a firewall or a load balancer in between that keeps a
// table of flows.
//
// A ladder of connections is opened together, and each is left alone for the
// time of its rung. Then a keepalive probe is sent on it (package keepalive),
// and tcp_info(7) tells whether it was answered. The first rung without an
// answer ends the pass; the next pass divides what lies between it and the
// rung below, until that is no more than the resolution:
//
//	result, err := survey.Run(ctx, survey.Options{Addr: server, Max: time.Hour})
//	fmt.Println(result.How, result.Alive, result.Gone)
//
// A pass takes as long as the answer, one rung, and the asking; [Options.Plan]
// says it beforehand. One lost probe is not taken for a forgotten connection:
// as many must be lost in a row as would not be, by the loss seen so far, in
// one of a million cases (package verdict), and a new connection must get
// through.
//
// What it cannot see: a box that forgets the flow and takes it up again at the
// next packet from this side looks as if it never forgot, though what the
// server sends in between is lost. And each connection that the path forgets
// stays open on the server until that finds out.
//
// Needs no privilege. Linux only: elsewhere the system does not tell of an
// answered probe, and the error matches errors.ErrUnsupported.
package survey
