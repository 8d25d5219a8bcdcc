package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/internal/conn"
	"deadpeer/internal/survey"
	"deadpeer/internal/verdict"
)

func (a *app) surveyPath() *cobra.Command {
	var longest, resolution duration
	var connections int
	var state string
	var yes bool
	cmd := &cobra.Command{
		Use:   "survey HOST:PORT",
		Short: "Find out how long the path lets a connection idle",
		Long: `survey finds out after how long idle a NAT, firewall or load balancer on the way
to a server forgets a connection. It opens several, leaves each alone for a time
of its own, and then has the kernel send a keepalive probe on it; what lies
between the last that answers and the first that does not is divided again. It
ends with the keepalive policy to use.

It takes a while, and says beforehand how long: for each pass as long as the
answer and one rung of its ladder. With --state it can be interrupted and goes
on where it was.

Take a server that lets a silent client wait. One that closes is reported as
server_close, with when; one that sends keepalive probes of its own, so that the
path never sees an idle connection, as server_keepalive (exit code 3). Never
means that every probe from here was answered: a box that forgets a connection
and takes it up again at the next packet from this side looks so, too, though
what the server sends in between is lost.

Connections that the path forgets stay open on the server until it finds out by
itself. Hosts that are neither loopback nor private need --yes.

With -o json, loss is the share of segments lost each way, and a time is null
when it is not known.`,
		Example: `  deadpeer survey db.internal:5432
  deadpeer survey --max 15m --resolution 1s --state nlb.json --yes www.example.com:443`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, words []string) error {
			o := survey.Options{
				Max: cmp.Or(time.Duration(longest), survey.DefaultMax), Resolution: time.Duration(resolution), Connections: connections,
			}
			if err := a.surveyTarget(cmd.Context(), &o, words[0], state, yes); err != nil {
				return err
			}
			return a.runSurvey(cmd.Context(), o, words[0], state)
		},
	}
	addOutput(cmd, &a.common.output, "table", "json", "jsonl")
	f := cmd.Flags()
	f.Var(&longest, "max", "longest idle time tried (default 2h)")
	f.Var(&resolution, "resolution", "how exactly the answer is wanted (default 5s)")
	f.IntVar(&connections, "connections", survey.DefaultConnections, "how many are open at a time, 2 to 64")
	f.StringVar(&state, "state", "", "keep what was found in this `file`, and go on from it")
	f.BoolVar(&yes, "yes", false, "the host may be one that is neither loopback nor private")
	return cmd
}

// surveyTarget finds the address, once, and what is known of it.
func (a *app) surveyTarget(ctx context.Context, o *survey.Options, target, state string, yes bool) error {
	addrs, err := resolveTarget(ctx, target)
	if err != nil {
		return err
	}
	o.Addr = addrs[0]
	if state != "" {
		if o.Resume, err = survey.ReadState(state); err != nil {
			return err
		}
		if known := o.Resume.Addr; known.IsValid() {
			if !slices.Contains(addrs, known) {
				return usage(fmt.Errorf("--state %s: it is of %v, and %s is %v now: remove the file, or survey that address", state, known, conn.Printable(target), addrs[0]))
			}
			o.Addr = known
		}
		o.Save = func(s survey.State) error { return s.Write(state) }
	}
	if ip := o.Addr.Addr(); !yes && !ip.IsLoopback() && !ip.IsPrivate() && !ip.IsLinkLocalUnicast() {
		return usage(fmt.Errorf("%v is neither loopback nor private: --yes says that up to %d connections may be held open to it",
			ip, o.Connections))
	}
	return nil
}

// resolveTarget gives the addresses of HOST:PORT, at least one.
func resolveTarget(ctx context.Context, target string) (list []netip.AddrPort, err error) {
	host, name, err := net.SplitHostPort(target)
	if err != nil || host == "" || name == "" {
		return nil, usage(fmt.Errorf("%q is no HOST:PORT, such as db.internal:5432 or [::1]:443", conn.Printable(target)))
	}
	port, err := strconv.ParseUint(name, 10, 16)
	if err != nil {
		n, lookErr := net.DefaultResolver.LookupPort(ctx, "tcp", name)
		if lookErr != nil {
			return nil, usage(fmt.Errorf("%q is no port, and no name of one", conn.Printable(name)))
		}
		port = uint64(n)
	}
	if port == 0 {
		return nil, usage(errors.New("port 0: allowed is 1 to 65535"))
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("find address of %s: %w", conn.Printable(host), err)
	}
	for _, ip := range ips {
		list = append(list, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return list, nil
}

func (a *app) runSurvey(ctx context.Context, o survey.Options, target, state string) error {
	plan, err := o.Plan()
	if err != nil {
		if e, ok := errors.AsType[*survey.OptionError](err); ok {
			return usage(fmt.Errorf("--%w", e))
		}
		return err
	}
	a.sayPlan(o, plan, target)
	progress := &surveyProgress{a: a, live: isTerminal(a.stderr), began: time.Now()}
	o.Observe = progress.event
	result, err := survey.Run(ctx, o)
	progress.end()
	if err != nil {
		if result.Alive > 0 {
			a.say("known so far: %s", strings.Join(surveyBounds(result), ", "))
		}
		if state != "" && result.Alive > 0 {
			a.say("--state %s goes on from there", state)
		}
		return err
	}
	f := surveyFound{target: conn.Printable(target), addr: o.Addr, Result: result}
	if a.common.output == "table" {
		err = a.surveyTable(f)
	} else {
		err = a.surveyJSON(f)
	}
	if err == nil && result.How == survey.Disturbed {
		return &exit{exitPartly, fmt.Errorf("the server itself sends something after %s, its own keepalive or data: no connection to it idles for longer. Survey another port of that host",
			about(result.Gone))}
	}
	return err
}

// sayPlan says beforehand what the survey takes.
func (a *app) sayPlan(o survey.Options, plan survey.Plan, target string) {
	name := conn.Printable(target)
	if addr := o.Addr.String(); addr != name {
		name += " is " + addr
	}
	if n := len(o.Resume.Observations); n > 0 {
		name += ", going on after " + count(n, "connection")
	}
	a.say("%s", name)
	a.say("at most %s of up to %s; each takes the answer, up to %s more, and %s for asking: %s if it is never forgotten, %s at the very most, unless the path loses a lot",
		plural(plan.Passes, "pass", "passes"), count(o.Connections, "connection"), about(plan.Rung), about(plan.Asking), about(o.Max), about(plan.Bound(o.Max)))
}

// surveyProgress says on stderr how far a survey is: a line for each pass, and
// on a terminal one that changes besides.
type surveyProgress struct {
	a     *app
	live  bool
	shown bool
	began time.Time
}

func (p *surveyProgress) event(e survey.Event) {
	p.end()
	if e.Observation == nil {
		if e.Pass == 0 {
			p.a.say("first one connection after %s", about(e.Rungs[0]))
			return
		}
		p.a.say("pass %d: %s, idle for %s to %s", e.Pass, count(len(e.Rungs), "connection"), about(e.Rungs[0]), about(e.Rungs[len(e.Rungs)-1]))
	}
	if !p.live {
		return
	}
	p.shown = true
	gone := "not found yet"
	if e.Gone > 0 {
		gone = about(e.Gone)
	}
	fmt.Fprintf(p.a.stderr, "\r\x1b[Kalive at %s, gone at: %s; %d waiting; for %s", about(e.Alive), gone, e.Open, verdict.Duration(time.Since(p.began)))
}

// end wipes the line that changes.
func (p *surveyProgress) end() {
	if p.shown {
		fmt.Fprint(p.a.stderr, "\r\x1b[K")
		p.shown = false
	}
}

// about is a time to a tenth of a second.
func about(d time.Duration) string {
	if d >= 10*time.Minute {
		return verdict.Duration(d)
	}
	return seconds(d.Round(100 * time.Millisecond))
}
