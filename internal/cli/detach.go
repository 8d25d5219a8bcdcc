package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/keepalive"
)

func (a *app) attachList() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the policies that are on connections of running programs",
		Long: `list shows the attachments, and the programs that were started by deadpeer run.

OPEN counts their connections there are, ENDED those that have ended since the
last look, NEW those that got the policy when they were made.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e := a.engine()
			list, err := e.Attachments(cmd.Context())
			programs, programsErr := e.Programs(cmd.Context())
			list, err = append(list, programs...), errors.Join(err, programsErr)
			if err != nil && list == nil {
				return err
			}
			var shown error
			if output == "json" {
				shown = a.attachmentsJSON(list)
			} else {
				shown = a.attachmentsTable(list)
			}
			return errors.Join(err, shown)
		},
	}
	addOutput(cmd, &output, "table", "json")
	return cmd
}

func (a *app) attachmentsTable(list []engine.Attachment) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stdout, "no attachments")
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tAGE\tOPEN\tENDED\tNEW\tPOLICY\tFILTER")
	for _, l := range list {
		for n, r := range l.Rules {
			match := conn.Printable(r.Match)
			switch {
			case l.Program != "":
				match = conn.Printable(l.Program)
			case match == "":
				match = "every connection"
			}
			if n > 0 {
				fmt.Fprintf(w, "\t\t\t\t\t%s\t%s\n", ruleCell(r), match)
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\n", l.ID, span(max(0, time.Since(l.At))), l.Sockets, l.Ended, newCell(l), ruleCell(r), match)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range list {
		name := "attachment " + l.ID
		if l.Program != "" {
			name = l.ID
		}
		if l.NotGiven > 0 {
			a.say("%s: %s went without it: the kernel refused, or their own user timeout would have made it fatal", name, count(int(l.NotGiven), "new connection"))
		}
		if l.Limited > 0 {
			a.say("%s: %s of programs would have weakened it and did not", name, count(int(l.Limited), "call"))
		}
		if l.Half {
			a.say("attachment %s: a deadpeer was interrupted while it attached or detached; deadpeer detach %s gives back what was there", l.ID, l.ID)
		}
	}
	return nil
}

// newCell counts the new connections that got the policy.
func newCell(l engine.Attachment) string {
	switch {
	case !l.New:
		return "-"
	case !l.Active:
		return fmt.Sprintf("%d, ended", l.Given)
	}
	return fmt.Sprint(l.Given)
}

func ruleCell(r engine.AttachedRule) string {
	if r.Enforce {
		return policyCell(r.Policy) + ", enforced"
	}
	return policyCell(r.Policy)
}

// policyCell shows a policy in the way of the column KEEPALIVE, with a dash for
// what it leaves alone.
func policyCell(p keepalive.Policy) string {
	part := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return span(d)
	}
	probes := "-"
	if p.Probes > 0 {
		probes = fmt.Sprint(p.Probes)
	}
	text := part(p.Idle) + "+" + probes + "×" + part(p.Interval)
	if p.UserTimeout > 0 {
		text += ", ut " + span(p.UserTimeout)
	}
	return text
}

func (a *app) attachmentsJSON(list []engine.Attachment) error {
	type attachment struct {
		ID         string     `json:"attachment"`
		Program    *string    `json:"program"` // of deadpeer run
		At         string     `json:"at"`
		Rules      []jsonRule `json:"rules"`
		Open       int        `json:"open"`
		Ended      int        `json:"ended"`
		Incomplete int        `json:"incomplete"`
		Half       bool       `json:"interrupted"`
		New        bool       `json:"new_connections"`
		Active     bool       `json:"active"`
		Given      uint64     `json:"given"`
		NotGiven   uint64     `json:"not_given"`
		Limited    uint64     `json:"limited_calls"`
	}
	out := struct {
		Schema      int          `json:"schema"`
		Attachments []attachment `json:"attachments"`
	}{Schema: 1, Attachments: []attachment{}}
	for _, l := range list {
		j := attachment{ID: l.ID, Rules: jsonRules(l.Rules), At: l.At.Format(time.RFC3339Nano), Open: l.Sockets, Ended: l.Ended, Incomplete: l.Incomplete, Half: l.Half, New: l.New,
			Active: l.Active, Given: l.Given, NotGiven: l.NotGiven, Limited: l.Limited}
		if l.Program != "" {
			j.Program = new(conn.Printable(l.Program))
		}
		out.Attachments = append(out.Attachments, j)
	}
	return newEncoder(a.stdout).Encode(out)
}

func (a *app) detach() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "detach [ID...]",
		Short: "Give connections back the settings they had before attach",
		Long: `detach gives every connection of an attachment the settings it had before, reads
them again, and drops the attachment. Without an ID it takes the only one there
is. What a program has changed itself meanwhile stays; where it was limited by
--enforce, it then has what it asked for.

A value that a socket had from its host can be put back only as a value of its
own: a later change of the host's default will not reach it.`,
		ValidArgsFunction: func(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			ids, _ := a.engine().AttachmentIDs() // who may not read them types them
			ids = slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(given, id) })
			return ids, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all && len(ids) > 0 {
				return usage(errors.New("give IDs or --all"))
			}
			if at := slices.IndexFunc(ids, func(id string) bool { return strings.HasPrefix(id, "run-") }); at >= 0 {
				return usage(fmt.Errorf("%s: a program that deadpeer run started has its policy until it ends", conn.Printable(ids[at])))
			}
			e := a.engine()
			if len(ids) == 0 && !all {
				if err := onlyOne(cmd.Context(), e); err != nil {
					return err
				}
			}
			saveMemory(os.Getenv)
			return a.runDetach(cmd, e, ids)
		},
	}
	f := cmd.Flags()
	addOutput(cmd, &a.common.output, "table", "wide", "json", "jsonl")
	f.BoolVarP(&a.common.verbose, "verbose", "v", false, "say how things were found out")
	f.BoolVar(&a.common.noColor, "no-color", false, "no colour (also: environment NO_COLOR)")
	f.BoolVar(&all, "all", false, "all attachments")
	f.BoolVar(&a.common.noBPF, "no-bpf", false, "change connections without BPF")
	_ = f.MarkHidden("no-bpf") // the flag was added just now
	return cmd
}

// onlyOne makes sure that there are not several attachments to choose from.
func onlyOne(ctx context.Context, e *engine.Engine) error {
	ids, err := e.AttachmentIDs()
	if err != nil || len(ids) < 2 {
		return err
	}
	list, err := e.Attachments(ctx) // drops those without an open connection
	if err != nil || len(list) < 2 {
		return err
	}
	ids = ids[:0]
	for _, l := range list {
		ids = append(ids, l.ID)
	}
	return usage(fmt.Errorf("there are several attachments, %s: name one, or give --all", strings.Join(ids, ", ")))
}

func (a *app) runDetach(cmd *cobra.Command, e *engine.Engine, ids []string) error {
	done, err := e.Detach(cmd.Context(), ids...)
	if _, unknown := errors.AsType[*engine.UnknownAttachmentError](err); unknown {
		return usage(err)
	}
	if len(done) == 0 && err == nil {
		a.say("no attachments")
		if programs, _ := e.Programs(cmd.Context()); len(programs) > 0 { // it is only a remark
			a.say("%s started by deadpeer run: the policy of such a program stays until it ends", count(len(programs), "program"))
		}
	}
	for _, d := range done {
		if shown := a.finishAttached(d); shown != nil && err == nil {
			err = shown
		}
		a.say("attachment %s: %s put back, %d had ended", d.ID, count(d.Changed, "connection"), d.Ended)
		if d.Passed > 0 {
			a.say("%s left as they are: newer attachments have them", count(d.Passed, "connection"))
		}
		if d.ByValue > 0 {
			a.say("%s put back by value equal the host's default: whether they were the program's own cannot be told, and a later change of the default will not reach them", count(d.ByValue, "value"))
		}
		if failed := a.partly(d); failed != nil && err == nil {
			err = failed
		}
	}
	return err
}
