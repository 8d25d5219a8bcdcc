// Package advise tells how a keepalive policy is made permanent in the
// configuration of the software that owns the connections.
//
// What it knows of software is in software.yaml, one entry each: how it is
// recognised, its file, its keys with their units, when a change takes effect,
// and the vendor's page that says so. [List] gives the entries, and
// [Software.Render] the lines to put for a policy; both work on every OS.
//
//	s, err := advise.ByName("postgresql")
//	advice, err := s.Render(keepalive.Policy{Idle: time.Minute, Interval: 10 * time.Second, Probes: 6})
//	fmt.Print(advice.Example) // tcp_keepalives_idle = 60 …
//
// [Survey] takes the connections of this host from an engine.Reader, groups
// them by program, and reads the real configuration of those it knows: what is
// set where, and whether the open sockets agree with it. It changes nothing.
// Linux; it needs what scan needs, and the right to read the configuration
// (root for most of it). What cannot be read is said, never guessed.
//
// [ReadLog] counts the network errors in a log of Firebird or InterBase, and
// [LogSummary.Advise] turns them into a policy.
//
// Everything that comes from files and processes goes through conn.Printable.
package advise
