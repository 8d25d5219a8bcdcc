package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"deadpeer/internal/demo"
)

func (a *app) demo() *cobra.Command {
	var trace bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it happen: a cut link, a phantom that holds a lock, its release",
		Long: `demo acts out the job of deadpeer in throw-away network namespaces. A client
takes a row lock and its link is cut; it comes back from another address and is
locked out by its own phantom, which the kernel alone would keep for ever. Then
deadpeer asks, proves the phantom dead and releases it, and the client takes its
lock, while five others keep theirs. Sockets, link, lock server and times are
real. It takes about 15 s; all it made is removed at the end.

Runs as root, or as anybody where user namespaces are allowed. Exits 0 only if
every step came out right.

With -o json, released_after_ms and lock_regained_after_ms count from the cut.`,
		Example: `  deadpeer demo
  deadpeer demo --trace
  deadpeer demo -o json | jq .phantom_verdict`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runDemo(cmd, trace) },
	}
	f := cmd.Flags()
	addOutput(cmd, &a.common.output, "table", "json")
	f.BoolVar(&a.common.noColor, "no-color", false, "no colour (also: environment NO_COLOR)")
	f.BoolVar(&trace, "trace", false, "show the questions and answers on the wire, too")
	cmd.AddCommand(a.demoLockServer())
	return cmd
}

// demoLockServer is the process that the demo starts as its lock server.
func (a *app) demoLockServer() *cobra.Command {
	return &cobra.Command{
		Use:    demo.LockServerCommand + " ADDRESS:PORT",
		Short:  "The lock server of the demo",
		Hidden: true,
		Args:   arguments(1, 1),
		RunE: func(cmd *cobra.Command, words []string) error {
			return demo.ServeLocks(cmd.Context(), words[0], a.stdin, a.stdout)
		},
	}
}

func (a *app) runDemo(cmd *cobra.Command, trace bool) error {
	output := a.common.output
	if trace && output == "json" {
		return usage(errors.New("--trace: has no meaning with --output json"))
	}
	args := []string{"demo", fmt.Sprintf("--trace=%t", trace), "--output", output, fmt.Sprintf("--no-color=%t", a.common.noColor)}
	code, entered, err := demo.Enter(cmd.Context(), args, a.stdin, a.stdout, a.stderr)
	switch {
	case errors.Is(err, demo.ErrForbidden):
		return &exit{exitPrivilege, err}
	case err != nil:
		return err
	case entered && code == exitDone:
		return nil
	case entered:
		a.stderr = io.Discard // what there is to say has been said by the other process
		return &exit{code, nil}
	}
	if output == "json" {
		return a.demoJSON(cmd)
	}
	story := &demo.Story{Out: a.stdout, Colour: a.colour(), Live: isTerminal(a.stdout)}
	_, err = demo.Run(cmd.Context(), demo.Options{Trace: trace, Observe: story.Observe, Progress: story.Progress})
	if writeErr := story.End(); err == nil {
		return writeErr
	}
	return err
}

// demoJSON writes the object once the demo has begun, be its end good or bad.
func (a *app) demoJSON(cmd *cobra.Command) error {
	begun := false
	result, err := demo.Run(cmd.Context(), demo.Options{Observe: func(demo.Step, *demo.Result) { begun = true }})
	if !begun || cmd.Context().Err() != nil {
		return err
	}
	if writeErr := json.NewEncoder(a.stdout).Encode(result.Report()); err == nil && writeErr != nil {
		return fmt.Errorf("write output: %w", writeErr)
	}
	return err
}
