// Package redis pings the idle connections of a go-redis client, so that the
// dead ones leave its pool before the application meets them.
//
//	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
//	monitor.Add("cache", beat.New(client))
//
// ContextTimeoutEnabled has go-redis heed the deadline of a ping. Without it a
// ping takes the client's own timeouts, and the monitor treats it as one that
// hangs.
//
// The pool makes new connections by itself. So after a break that has ended by
// the next ping, which follows a failed one at once, a target is suspect and up
// again without [Target.Reconnect].
//
// The answer comes from the server's main loop, the one that answers every
// command. A proxy that passes bytes on, such as HAProxy, keeps its connection
// to the client and answers TCP keepalive when the server behind it is gone;
// PING then gets no answer.
//
// Works on every OS, with no privileges.
package redis

import (
	"context"
	"errors"
	"sync"

	"github.com/redis/go-redis/v9"

	"deadpeer/heartbeat"
)

// most is how many idle connections are pinged at a time. The pool gives out
// those used last first.
const most = 256

// Target pings through a client, which stays the caller's.
type Target struct{ client *redis.Client }

var _ heartbeat.Reconnecter = (*Target)(nil)

// New makes the target of a client.
func New(client *redis.Client) *Target { return &Target{client} }

// Ping sends PING on every idle connection at the same time, at least on one,
// which is made if there is none. One that does not answer fails the ping, and
// go-redis closes it. Whatever MaxRetries says, PING is not sent again over
// another connection: a connection that broke is told, even though the pool has
// a new one by the next ping.
func (t *Target) Ping(ctx context.Context) error {
	n := min(max(int(t.client.PoolStats().IdleConns), 1), most)
	failed := make([]error, n)
	var all sync.WaitGroup
	for i := range failed {
		all.Go(func() {
			// A Conn keeps its connection until Close, so that each has
			// another one.
			c := t.client.Conn()
			failed[i] = errors.Join(c.Process(ctx, once{redis.NewStatusCmd(ctx, "ping")}), c.Close())
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

// once is a command that is sent once.
type once struct{ *redis.StatusCmd }

// NoRetry is for go-redis.
func (once) NoRetry() bool { return true }

// Reconnect has the client make a connection, if none of those it has answers.
func (t *Target) Reconnect(ctx context.Context) error { return t.client.Ping(ctx).Err() }
