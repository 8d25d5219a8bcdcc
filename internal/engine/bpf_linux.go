package engine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
	"deadpeer/keepalive"
)

// openSockets opens the BPF programs that list sockets, unless they are not
// wanted.
func (r *run) openSockets(alone bool) {
	o := r.e.options
	if o.NoBPF || o.ProcRoot != defaultRoot {
		return
	}
	var err error
	// The programs tell pids as this process's pid namespace numbers them.
	if self, readErr := os.Readlink(o.ProcRoot + "/self"); readErr != nil || self != strconv.Itoa(os.Getpid()) {
		err = fmt.Errorf("%s is of another pid namespace", o.ProcRoot)
	} else {
		r.sockets, err = bpf.OpenSockets(bpf.SocketsOptions{Alone: alone})
	}
	if err != nil {
		r.sockets = nil
		r.withoutBPF(err)
	}
}

func (e *Engine) mayUseBPF() bool {
	const needed = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
	return !e.options.NoBPF && effective()&needed == needed
}

// withoutBPF says why it was not used, though wanted.
func (r *run) withoutBPF(why error) {
	r.snap.How = append(r.snap.How, fmt.Sprintf("BPF was not used: %v", why))
}

// byBPF names the way, for the curious.
func (r *run) byBPF() string {
	if pinned, why := r.sockets.Pinned(); !pinned {
		return fmt.Sprintf("by BPF, loaded for this run alone (%v),", why)
	}
	return "by BPF, pinned,"
}

// listByBPF is list with settings, and the place by which owners are found.
// States without a peer are left to sock_diag.
func (r *run) listByBPF(ctx context.Context, s *space, visit func(*row, *sockdiag.Memory) error) error {
	states, open := r.req.Filter.States(), r.filterOpen()
	var subject conn.Subject
	var one row
	var last bpf.Settings // neighbours are alike
	var at, tick uint32
	return r.sockets.Connections(ctx, s.ns, r.ready, func(c *bpf.Record) error {
		if subject.Sock = &c.Sock; !states.Has(c.Sock.State) || r.rejects(&subject, open) {
			return nil
		}
		if c.Settings != last || at == 0 {
			at, last = r.book(settingOf(c.Settings)), c.Settings
		}
		if c.Tick != tick || one.read == (reading{}) {
			tick, one.read = c.Tick, r.snap.kernel.tickOf(c.Tick, time.Now())
		}
		one.sock, one.place, one.settings, one.reuses = c.Sock, c.Handle.Place, 0, c.Reuses
		if c.Sock.HasInfo {
			one.settings = at
		}
		return visit(&one, nil)
	})
}

func settingOf(s bpf.Settings) setting {
	known := setting{Settings: s.Settings, origin: OriginProgram}
	if s.Own == (keepalive.Policy{}) {
		known.origin = OriginHost
	}
	return known
}
