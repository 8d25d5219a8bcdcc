package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Target is something that can be asked whether its peer is alive. It may also
// be a [Readier], a [Hearer], a [Reconnecter], an [Untimed] and a [sync.Locker];
// one that is a Locker is locked for each ping, and waiting for the lock is no
// failure. But for what Reconnecter says, one method is called at a time.
type Target interface {
	// Ping returns nil when the peer's application has answered. It should
	// return when ctx is done. The context is shared by pings that start in
	// the same millisecond: it is not cancelled when Ping returns.
	Ping(ctx context.Context) error
}

// PingFunc is a function as a [Target], such as the PingContext of a
// database/sql pool.
type PingFunc func(ctx context.Context) error

// Ping calls f.
func (f PingFunc) Ping(ctx context.Context) error { return f(ctx) }

// Readier is a [Target] that can tell that it has no connection at present,
// and gets one by itself. It is not pinged then.
type Readier interface {
	Ready() bool
}

// Hearer is a [Target] that knows when its peer last proved to be alive, such
// as by an answer to the application's own requests. It is not pinged before
// it has been silent for a period, and a ping that returns
// [context.DeadlineExceeded] does not count if something was heard after it had
// begun.
type Hearer interface {
	// Heard tells how long ago that was, and is negative for never.
	Heard() time.Duration
}

// Untimed is a [Target] that may be unable to tell how long an answer took,
// since its Ping waits for something else besides, such as a timer.
type Untimed interface {
	// Untimed reports that it is.
	Untimed() bool
}

// Reconnecter is a [Target] that can replace its connection. Its Reconnect is
// called when the target is down, never twice at a time, and not under the
// target's lock. A Ping that outlived its deadline may still be running:
// Reconnect should end it, by closing the connection.
type Reconnecter interface {
	// Reconnect returns nil when there is a new connection, which is then
	// pinged at once. ctx has the deadline of a ping, and ends with the
	// monitor or the removal of the target.
	Reconnect(ctx context.Context) error
}

// ErrNotReturned is the error of a call that ignored its deadline.
var ErrNotReturned = errors.New("call has not returned by its deadline")

var errGoexit = errors.New("target ended the goroutine that called it")

// PanicError is the error of a target that panicked.
type PanicError struct {
	Value any
	Stack []byte // of the goroutine, as text
}

func (e *PanicError) Error() string { return fmt.Sprintf("target panicked: %v", e.Value) }

// Unwrap gives the panic's value if that was an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
