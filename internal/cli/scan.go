package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

func (a *app) scan() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scan [FILTER...]",
		Short: "List connections, their policy and when the kernel would give each up",
		Long: `scan lists TCP connections with their state, owner, what was heard of the peer,
the keepalive policy in force and when the kernel would give the connection up.
It sends nothing and changes nothing. Connections of other users' programs show
their owner and policy only to root.

The foot counts verdicts and the blind: connections the kernel would never give
up, however long the peer is gone.`,
		Example: `  sudo deadpeer scan
  sudo deadpeer scan --netns all 'sport = :5432 and heard > 10m'
  deadpeer scan -o json | jq '.connections[] | select(.forecast.gives_up == false)'`,
		RunE: func(cmd *cobra.Command, words []string) error {
			req, err := a.request(words)
			if err != nil {
				return err
			}
			if by := a.common.by; req.NoOwners && (by == "program" || by == "unit") {
				return usage(fmt.Errorf("--by %s needs owners: not with --no-owners", by))
			}
			for _, v := range []conn.Verdict{conn.Suspect, conn.Dead, conn.Stuck} {
				if req.Filter.NamesVerdict(v) {
					a.say("scan does not ask peers, so nothing is %s to it; check does", v)
				}
			}
			if a.common.output != "table" || a.common.noBPF {
				saveMemory(os.Getenv)
			} else { // there is next to no garbage
				collectAt(400, os.Getenv)
			}
			return a.stream(cmd.Context(), a.engine(), req)
		},
	}
	a.addCommon(cmd, false)
	a.addDatabases(cmd)
	addChoice(cmd, &a.common.by, "by", "", "`group` by program, unit or peer: connections, blind, worst detection time", "program", "unit", "peer")
	cmd.Flags().BoolVar(&a.common.noOwners, "no-owners", false, "do not look for the processes that hold the connections (faster)")
	return cmd
}

func (a *app) check() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "check [FILTER...]",
		Short: "Ask every selected connection's peer now whether it is there",
		Long: `check makes the kernel send one zero-length segment on every selected connection,
the very segment a keepalive probe is, and waits for the answers. A peer that
answers is alive. One that stays silent is asked again until the chance that a
living peer kept silent is at most one in a million, and for at least 3 s; then
it is dead: unreachable from here.

Programs do not notice, and their sockets keep every option. But a
question can end a connection that is half-open already: a peer that rebooted,
or a box on the path that forgot the flow, answers with RST.

Without CAP_NET_ADMIN, and in CLOSE-WAIT and FIN-WAIT-2, the question is one of
the socket's own keepalive probes. Unanswered it counts: where keepalive is on
and the peer is gone, the kernel gives the connection up sooner. Asking stops
before the last probe; what stays suspect then needs CAP_NET_ADMIN.

Never asked, unless the filter names the cookie: your own SSH session, kubelet,
and connections with both ends on this host.`,
		Example: `  sudo deadpeer check
  sudo deadpeer check 'sport = :3050 and heard > 1m'
  sudo deadpeer check --exit-code 'dst 10.0.0.0/8'   # exits 10 when a dead peer was found`,
		RunE: func(cmd *cobra.Command, words []string) error {
			req, err := a.request(words)
			if err != nil {
				return err
			}
			done := a.progress(&req)
			saveMemory(os.Getenv)
			snap, err := a.engine().Check(cmd.Context(), req)
			done()
			if snap == nil {
				return err
			}
			shown, partly := a.finish(snap, false), &exit{}
			switch {
			case err != nil:
				return err
			case exitCode && a.found[conn.Dead] > 0 && (shown == nil || errors.As(shown, &partly)):
				partly.code = exitDead // whatever else could not be asked
				return partly
			}
			return shown
		},
	}
	a.addCommon(cmd, true)
	a.addDatabases(cmd)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit 10 when a dead peer was found")
	return cmd
}

func (a *app) release() *cobra.Command {
	var yes, despiteOutage, evenAlive bool
	var via, session string
	cmd := &cobra.Command{
		Use:   "release [FILTER...]",
		Short: "End the connections whose peer is proven dead",
		Long: `release asks like check and goes on asking until every dead peer has been silent
for --silence (60 s: roaming, fail-over and sleeping laptops come back). Then it
shows its plan, and with --yes ends those connections: the program that holds
one gets an error on its next call and lets go of whatever it held.

Right before each is ended its identity and evidence are read again; one that
has heard anything since it was first asked is left alone. Nothing is ended
over a path that itself seems gone (interface down, gateway silent, over 60 % of
ten or more peer addresses silent) unless --despite-outage is given: exit code 3
says what was held.

With --db a connection that has a database session is ended by the database
itself (pg_terminate_backend, KILL, DELETE FROM MON$ATTACHMENTS) and seen to be
gone; where that fails, by its socket, and the session seen to be gone.

The table lists the dead, the suspect and what the plan names, and counts the
others; -o json lists all.`,
		Example: `  sudo deadpeer release 'sport = :3050'          # the plan
  sudo deadpeer release --yes 'sport = :3050'
  sudo deadpeer release --yes --even-alive 'cookie = 81985529216486895'
  sudo deadpeer release --yes --db @/root/databases 'sport = :3050'
  sudo deadpeer release --yes --db @/root/databases --even-alive --session 12`,
		RunE: func(cmd *cobra.Command, words []string) error {
			req, err := a.request(words)
			if err != nil {
				return err
			}
			if req.Via = engine.Via(via); req.Via == engine.ViaDatabase && len(req.Databases) == 0 {
				return usage(errors.New("--via database needs --db"))
			}
			if cmd.Flags().Changed("session") {
				if req.Filter, err = a.nameSession(cmd.Context(), req, session); err != nil {
					return err
				}
			}
			if evenAlive && !req.Filter.NamesOne() {
				return usage(errors.New("--even-alive needs a filter that names one connection: cookie = N, or --session ID"))
			}
			req.Settings, req.DespiteOutage, req.EvenAlive = true, despiteOutage, evenAlive
			return a.runRelease(cmd.Context(), req, yes)
		},
	}
	a.addCommon(cmd, true)
	a.addDatabases(cmd)
	f := cmd.Flags()
	f.Lookup("timeout").Usage = "longest time to go on asking, besides --silence (default 30s)"
	via = string(engine.ViaAuto)
	addChoice(cmd, &via, "via", "", "`way` to end connections with a session: auto, database or socket",
		string(engine.ViaAuto), string(engine.ViaDatabase), string(engine.ViaSocket))
	f.StringVar(&session, "session", "", "only the connection of the database session with this `ID` (needs --db)")
	f.BoolVar(&yes, "yes", false, "act; without it only the plan is shown")
	f.BoolVar(&despiteOutage, "despite-outage", false, "release although our own side of the path seems gone")
	f.BoolVar(&evenAlive, "even-alive", false, "release the connection that the filter names by cookie, or --session, whatever its verdict")
	return cmd
}

func (a *app) runRelease(ctx context.Context, req engine.Request, yes bool) error {
	done := a.progress(&req)
	saveMemory(os.Getenv)
	plan, err := a.engine().Plan(ctx, req)
	done()
	if plan == nil {
		return err
	}
	defer func() { _ = plan.Close() }()
	if err != nil {
		_ = a.finish(plan.Snapshot, true)
		return err
	}
	for _, held := range plan.Held {
		a.say("held: %s (--despite-outage to go on)", held)
	}
	planned := plan.Len()
	if yes && planned > 0 {
		err = plan.Act(ctx)
	}
	shown := a.finish(plan.Snapshot, true)
	switch {
	case err != nil:
		return err
	case len(plan.Held) > 0:
		return &exit{exitPartly, errors.New("some dead connections were held back")}
	case shown != nil:
		return shown
	case yes && a.left > 0:
		return &exit{exitPartly, fmt.Errorf("%s left: the table says why", count(a.left, "dead connection"))}
	case !yes && planned > 0:
		a.say("this is the plan; --yes ends %s", count(planned, "connection"))
	}
	return nil
}

func count(n int, what string) string { return plural(n, what, what+"s") }

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// stream shows connections while they are being listed. It changes nothing:
// interrupted it ends although a pager reads no more.
func (a *app) stream(ctx context.Context, e *engine.Engine, req engine.Request) error {
	defer context.AfterFunc(ctx, func() {
		time.Sleep(time.Second)
		os.Exit(exitSignal)
	})()
	var snap *engine.Snapshot
	err := a.show(&engine.Snapshot{TakenAt: time.Now()}, false, func(visit func(*engine.Connection) error) (err error) {
		snap, err = e.Stream(ctx, req, visit)
		return err
	})
	if err != nil {
		return err
	}
	return a.remark(snap)
}

// finish shows a snapshot and says what was not seen.
func (a *app) finish(snap *engine.Snapshot, acted bool) error {
	err := a.show(snap, acted, func(visit func(*engine.Connection) error) error {
		for c := range snap.All() {
			if err := visit(c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return a.remark(snap)
}

// remark says how things were found out and what was not seen.
func (a *app) remark(snap *engine.Snapshot) error {
	if a.common.verbose {
		for _, how := range snap.How {
			a.say("%s", how)
		}
	}
	for _, h := range snap.Hints {
		if h.Dead || a.common.verbose {
			a.say("%s", h.Text)
		}
	}
	privilege, untold, refused := false, false, false
	for _, n := range snap.Notes {
		a.say("%s", n.Text)
		privilege = privilege || n.Privilege && !n.Database
		untold = untold || n.Database
		refused = refused || n.Privilege && n.Database
	}
	switch {
	case privilege && (snap.Asked || a.common.netns != "current"):
		return &exit{exitPrivilege, errors.New("not everything could be done; deadpeer doctor says what is missing")}
	case refused:
		return &exit{exitPrivilege, errors.New("a database did not tell all of its sessions")}
	case untold:
		return &exit{exitPartly, errors.New("a database did not tell of its sessions")}
	}
	return nil
}
