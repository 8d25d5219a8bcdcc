package cli

import (
	"encoding/json"
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
is given: then settings left changed are put back. What deadpeer can do without
is marked so, and does not count as missing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e := engine.New(engine.Options{})
			if clean {
				n, err := e.Clean(cmd.Context())
				a.say("put back %s", count(n, "setting"))
				if err != nil {
					return err
				}
			}
			return a.findings(e.Diagnose(), output)
		},
	}
	cmd.Flags().BoolVar(&clean, "clean", false, "put back what a killed deadpeer left changed")
	addOutput(cmd, &output, "table", "json")
	return cmd
}

func (a *app) findings(list []engine.Finding, output string) error {
	missing := 0
	for _, f := range list {
		if !f.OK && !f.Optional {
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
		}
		out := struct {
			Schema   int       `json:"schema"`
			Findings []finding `json:"findings"`
		}{Schema: 1}
		for _, f := range list {
			j := finding{What: f.What, OK: f.OK, Detail: f.Detail, Needed: !f.Optional}
			if f.Mend != "" {
				j.Mend = &f.Mend
			}
			out.Findings = append(out.Findings, j)
		}
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(out); err != nil {
			return err
		}
	case "table":
		for _, f := range list {
			mark := "ok     "
			switch {
			case f.OK:
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
	default:
		return usage(fmt.Errorf("--output: %q is not one of table, json", output))
	}
	if missing > 0 {
		return &exit{exitPrivilege, errors.New(count(missing, "thing") + " missing")}
	}
	return nil
}
