package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"deadpeer/internal/engine"
)

func (a *app) doctor() *cobra.Command {
	var clean bool
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this kernel and these privileges allow, and what is missing for what",
		Long: `doctor looks at the kernel, at the privileges of the caller, and at what a
deadpeer that was killed may have left behind. It changes nothing, unless --clean
is given: then settings left changed are put back, what was attached or detached
by halves is taken back, and policies for new connections and cgroups without a
program are removed. What deadpeer can do without is marked so, and does not
count as missing.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e := a.engine()
			if clean {
				if err := a.clean(cmd.Context(), e); err != nil {
					return err
				}
			}
			return a.findings(e.Diagnose(), output)
		},
	}
	cmd.Flags().BoolVar(&clean, "clean", false, "put back and remove what a killed deadpeer left behind")
	addOutput(cmd, &output, "table", "json")
	return cmd
}

// clean says what was done about each thing that was left behind.
func (a *app) clean(ctx context.Context, e *engine.Engine) error {
	list, err := e.Clean(ctx)
	for _, l := range list {
		done := l.Done
		if done == "" {
			done = "still there"
		}
		a.say("%s, %s: %s", l.What, l.Why, done)
	}
	if len(list) == 0 && err == nil {
		a.say("nothing was left behind")
	}
	return err
}

func (a *app) findings(list []engine.Finding, output string) error {
	missing, left := 0, 0
	for _, f := range list {
		switch {
		case f.OK || f.Optional:
		case f.Left:
			left++
		default:
			missing++
		}
	}
	switch output {
	case "json":
		type finding struct {
			What   string  `json:"what"`
			OK     bool    `json:"ok"`
			Detail string  `json:"detail"`
			Mend   *string `json:"mend"`
			Needed bool    `json:"needed"`
			Left   bool    `json:"left_behind"`
		}
		out := struct {
			Schema   int       `json:"schema"`
			Findings []finding `json:"findings"`
		}{Schema: 1}
		for _, f := range list {
			j := finding{What: f.What, OK: f.OK, Detail: f.Detail, Needed: !f.Optional, Left: f.Left && !f.OK}
			if f.Mend != "" {
				j.Mend = &f.Mend
			}
			out.Findings = append(out.Findings, j)
		}
		if err := newEncoder(a.stdout).Encode(out); err != nil {
			return err
		}
	case "table":
		for _, f := range list {
			mark := "ok     "
			switch {
			case f.OK:
			case f.Left:
				mark = "left   "
			case f.Optional:
				mark = "without"
			default:
				mark = "missing"
			}
			if _, err := fmt.Fprintf(a.stdout, "%s  %s: %s\n", mark, f.What, f.Detail); err != nil {
				return err
			}
			if f.Mend != "" {
				fmt.Fprintf(a.stdout, "         -> %s\n", f.Mend)
			}
		}
	}
	behind := count(left, "thing") + " left behind by a killed deadpeer: deadpeer doctor --clean"
	switch {
	case missing > 0 && left > 0:
		a.say("%s", behind)
		fallthrough
	case missing > 0:
		return &exit{exitPrivilege, errors.New(count(missing, "thing") + " missing")}
	case left > 0:
		return errors.New(behind)
	}
	return nil
}
