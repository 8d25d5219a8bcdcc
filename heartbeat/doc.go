// Package heartbeat pings the peers of many connections at the application's
// own level, so that a break shows while nothing else is being said, and has
// them reconnected.
//
// TCP keepalive proves the next TCP endpoint only (see package keepalive). If
// that is a proxy or a load balancer it goes on answering for a dead machine
// behind it. What proves the application is a ping that the application
// answers.
//
//	monitor := heartbeat.New(heartbeat.Options{Period: 30 * time.Second})
//	if err := monitor.Start(ctx); err != nil { … }
//	defer monitor.Stop(context.Background())
//	monitor.Add("orders", heartbeat.PingFunc(db.PingContext))
//
// A [Target] is anything with a Ping method. It may also have the methods of
// [Readier], [Hearer], [Untimed], [Reconnecter] and [sync.Locker]: the monitor
// looks for each. The sub-packages have targets for common protocols. Most begin
// without a connection, and their pings fail until the monitor has reconnected
// them: call Reconnect before Add, lest that is logged and counted.
//
// # What happens when
//
// A target is pinged one period after it was added, and again one period after
// each answer, each time a little earlier ([Options.Jitter]). A failed ping is
// followed by another at once. So many failures in a row as [Options.Failures]
// says make the target [Down]: it is reconnected when it can be, at once and
// then after growing random waits, until a ping is answered again.
//
// A call that has not returned by its deadline counts as failed, and again
// after each further deadline. It costs its own target only: its goroutine is
// written off and another takes its place, and the target is not pinged again
// before the call returns. To end such a call is the job of
// Reconnect, which is called meanwhile. Nothing a target does ends the monitor,
// a panic included.
//
// A break is noticed at most period + failures × deadline after it happened,
// and a tenth of a second for each call that ignores its context. When so many
// peers are gone at once that their pings take all of [Options.Workers], it is
// noticed as late as a worker comes.
//
// A million targets are one scheduler and as many goroutines as there are
// calls under way.
package heartbeat
