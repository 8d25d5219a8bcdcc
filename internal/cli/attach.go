package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
	"deadpeer/keepalive"
)

func (a *app) attach() *cobra.Command {
	var policy policyFlags
	var inFlight, dryRun bool
	var file string
	var future futureFlags
	cmd := &cobra.Command{
		Use:   "attach [FILTER...]",
		Short: "Put a keepalive policy on connections of running programs",
		Long: `attach puts a keepalive policy on the connections of programs that run already,
whatever they are written in. Nothing is restarted. What each socket had is
written down first; deadpeer detach gives it back. The policy stays after the
command.

With --within, --profile or --idle, --interval and --probes a vanished peer of
an idle connection is noticed. Data in flight is another matter: only a user
timeout bounds it, which also ends a living peer that keeps its window shut for
that long. It is set when asked for, with --in-flight or --user-timeout; else
attach says what is left open.

A connection that has been idle for longer than the policy allows is probed at
once. A peer that rebooted, or a box on the path that forgot the connection,
answers with RST and so ends it.

With --new future connections get the policy, too, before their program does,
by BPF: those of the whole host, of a --cgroup and those below it, or of a
--unit. The filter then may tell ports, the peer's address and the family. With
--enforce programs cannot weaken it, nor that of their open connections: their
calls succeed and do no more than it allows. (MPTCP is out of its reach.) When
the cgroup is removed, as that of a unit that is stopped, it is over.

Connections of an older attachment are taken over from it, which is said:
detach gives back what they had before both. Those on which an older one,
or deadpeer run, enforces its policy stay as they are. Future connections can
have the policy of one attachment only: a second that has --new for some of the
same is refused. Those of a program that deadpeer run started have that one's.

A file of --rules is a list, of which a connection has the first that matches:

  - {match: "sport = :5432", within: 90s, in_flight: true}
  - {match: "dst 10.0.0.0/8", profile: lan, new: true, unit: app.service}

with the keys match, within, profile, idle, interval, probes, user_timeout,
in_flight, new, enforce, cgroup and unit.

Left alone, unless the filter names the cookie: your own SSH session and
kubelet.`,
		Example: `  sudo deadpeer attach --within 90s 'sport = :3050'
  sudo deadpeer attach --profile lan --dry-run blind
  sudo deadpeer attach --new --unit nginx.service --within 60s
  sudo deadpeer attach list
  sudo deadpeer detach`,
		RunE: func(cmd *cobra.Command, words []string) error {
			req, err := a.request(words)
			if err != nil {
				return err
			}
			if file != "" {
				if policy != (policyFlags{}) || inFlight || future != (futureFlags{}) {
					return usage(errors.New("--rules says it all: no policy, --in-flight, --new or --enforce beside it"))
				}
				rules, err := a.readRules(file)
				if err != nil {
					return err
				}
				for n := range rules {
					if err := a.future(&rules[n], words); err != nil {
						return err
					}
				}
				return a.runAttach(cmd.Context(), engine.AttachRequest{Request: req, Rules: rules, DryRun: dryRun}, "in_flight: true in its rule")
			}
			p, err := policy.attachable(inFlight)
			if err != nil {
				return usage(err)
			}
			rule := engine.AttachRule{Policy: p, New: future.connections, Enforce: future.enforce}
			if err := a.future(&rule, words); err != nil {
				return err
			}
			return a.runAttach(cmd.Context(), engine.AttachRequest{Request: req, Rules: []engine.AttachRule{rule}, DryRun: dryRun}, "--in-flight")
		},
	}
	a.addCommon(cmd, false)
	f := cmd.Flags()
	policy.add(cmd)
	f.BoolVar(&inFlight, "in-flight", false, "bound data in flight, too: a user timeout of idle + probes times interval")
	future.add(f)
	f.StringVar(&file, "rules", "", "read policies from this YAML `file`: a list of rules, the first that matches holds")
	f.BoolVar(&dryRun, "dry-run", false, "change nothing, show what would be changed")
	cmd.AddCommand(a.attachList())
	return cmd
}

// futureFlags say what is wanted of future connections.
type futureFlags struct{ connections, enforce bool }

func (n *futureFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&n.connections, "new", false, "future connections, too")
	f.BoolVar(&n.enforce, "enforce", false, "with --new: do not let programs weaken the policy")
}

// future completes a rule by what the command line says of future connections.
// What selects programs by name or number cannot be told of those to come.
func (a *app) future(rule *engine.AttachRule, words []string) error {
	c := a.common
	switch {
	case rule.New && (c.pid != 0 || c.comm != ""):
		return usage(errors.New("--new cannot go by --pid or --comm: give --cgroup or --unit, or start the program by deadpeer run"))
	case rule.Cgroup == "" && rule.Unit == "":
		rule.Cgroup, rule.Unit = c.cgroup, c.unit
	case rule.New && (c.cgroup != "" || c.unit != ""):
		return usage(errors.New("--cgroup and --unit cannot narrow a rule that has new and one of them itself"))
	}
	if err := checkFuture(rule); err != nil {
		return usage(err)
	}
	besides, err := conn.ParseFilter(words, resolver())
	if err != nil {
		return err
	}
	if rule.Future != nil {
		besides = rule.Future.And(besides)
	}
	rule.Future = besides
	return nil
}

// checkFuture refuses rules for future connections that cannot be.
func checkFuture(rule *engine.AttachRule) error {
	switch {
	case !rule.New && rule.Enforce:
		return errors.New("enforce needs new: it is about connections made from now on")
	case !rule.New:
	case rule.Unit != "" && rule.Cgroup != "":
		return errors.New("new: give one of cgroup and unit")
	case rule.Policy.Idle == 0 || rule.Policy.Interval == 0 || rule.Policy.Probes == 0:
		return errors.New("new needs within, profile, or all of idle, interval and probes")
	}
	return nil
}

// attachable is the policy for sockets of others: without a user timeout
// unless it was asked for.
func (p *policyFlags) attachable(inFlight bool) (keepalive.Policy, error) {
	if *p == (policyFlags{}) {
		return keepalive.Policy{}, errors.New("give a policy: --within, --profile, or --idle, --interval and --probes")
	}
	policy, err := p.policy(keepalive.Policy{UserTimeout: -1})
	if err != nil {
		return policy, err
	}
	switch {
	case inFlight && p.userTimeout != 0:
		return policy, errors.New("give one of --in-flight and --user-timeout")
	case inFlight && (policy.Idle == 0 || policy.Interval == 0 || policy.Probes == 0):
		return policy, errors.New("--in-flight needs --within, --profile, or all of --idle, --interval and --probes")
	case inFlight:
		policy.UserTimeout = policy.Idle + time.Duration(policy.Probes)*policy.Interval
	case p.userTimeout == 0:
		policy.UserTimeout = -1
	}
	return policy, policy.ValidateFor("linux")
}

// runAttach attaches. Data in flight would be bounded by what inFlight names.
func (a *app) runAttach(ctx context.Context, req engine.AttachRequest, inFlight string) error {
	saveMemory(os.Getenv)
	done, err := a.engine().Attach(ctx, req)
	var future *engine.FutureError
	switch {
	case errors.As(err, &future):
		return usage(err)
	case err != nil:
		return err
	}
	if err := a.finishAttached(done); err != nil {
		return err
	}
	switch {
	case done.New && !req.DryRun:
		a.say("attachment %s: %s, and those to come; deadpeer detach %s ends it and gives back what was there", done.ID, count(done.Changed, "connection"), done.ID)
	case done.Matched == 0:
		a.say("no connection was matched: nothing was attached")
	case req.DryRun:
		a.say("nothing was changed; without --dry-run %s would get the policy", count(done.Changed, "connection"))
	case done.ID != "":
		a.say("attachment %s: %s; deadpeer detach %s gives back what was there", done.ID, count(done.Changed, "connection"), done.ID)
	}
	if req.DryRun {
		a.sayFuture(done.Rules)
	}
	for _, t := range done.TakenOver {
		verb := "taken over from"
		if req.DryRun {
			verb = "would be taken over from"
		}
		a.say("%s %s attachment %s", count(t.Connections, "connection"), verb, t.ID)
	}
	if done.Ended > 0 {
		a.say("%s had ended before it was their turn", count(done.Ended, "connection"))
	}
	if f := done.InFlight; f != nil {
		a.say("data in flight is given up only after %s to %s (tcp_retries2); %s bounds it", verdict.Duration(f.Earliest), verdict.Duration(f.Latest), inFlight)
	}
	if done.Slowest > 0 {
		a.say("the rest of the policy stays each connection's own: an idle one notices a vanished peer after up to %s", verdict.Duration(done.Slowest))
	}
	if done.Unfit != "" {
		a.say("%s", done.Unfit)
	}
	return a.partly(done)
}

// sayFuture tells what connections to come would get.
func (a *app) sayFuture(rules []engine.AttachedRule) {
	for _, r := range rules {
		if r.New {
			a.say("future connections would get %s: %s", ruleCell(r), cmp.Or(conn.Printable(r.Match), "all of this host"))
		}
	}
}

// finishAttached shows what attaching or detaching came to.
func (a *app) finishAttached(done *engine.Attached) error {
	a.attached = done
	defer func() { a.attached = nil }()
	return a.finish(done.Snapshot, true)
}

func (a *app) partly(done *engine.Attached) error {
	if done.Failed > 0 {
		code := exitPartly
		if done.Denied {
			code = exitPrivilege
		}
		return &exit{code, fmt.Errorf("not, or not wholly: %s; OUTCOME says why", count(done.Failed, "connection"))}
	}
	return nil
}
