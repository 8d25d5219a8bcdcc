// Package cli is the command line of deadpeer: it reads flags and filters,
// runs the engine and shows what it found. Data goes to stdout, messages and
// progress to stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/journal"
)

// Exit codes.
const (
	exitDone      = 0
	exitFailed    = 1
	exitUsage     = 2
	exitPartly    = 3
	exitPrivilege = 4
	exitDead      = 10
	exitSignal    = 130
)

// exit is an error that carries an exit code. A nil err says nothing more.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

func usage(err error) error { return &exit{exitUsage, err} }

// app is one invocation.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	common common
	found  [conn.VerdictCount]int // by the last show
	left   int

	attached *engine.Attached // what show is to show, when that is one
}

// Run runs the command line and returns the exit code. args leaves out the
// program's name.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return a.code(ctx, root.ExecuteContext(ctx))
}

// code reports err and turns it into an exit code.
func (a *app) code(ctx context.Context, err error) int {
	var e *exit
	var filter *conn.FilterError
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil && onlyCancelled(err):
		a.say("interrupted; everything was put back")
		return exitSignal
	case ctx.Err() != nil:
		a.say("%v", err)
		a.say("interrupted")
		return exitSignal
	case errors.As(err, &filter):
		a.say("%v\n%s", filter, filter.Pointer())
		return exitUsage
	case errors.As(err, &e):
		if e.err != nil {
			a.say("%v", e.err)
		}
		return e.code
	case errors.Is(err, os.ErrPermission):
		a.say("%v", err)
		return exitPrivilege
	case errors.Is(err, errors.ErrUnsupported):
		a.say("%v", err)
		return exitPrivilege
	}
	a.say("%v", err)
	return exitFailed
}

// onlyCancelled reports whether all that an error tells is that the command
// was interrupted. Who was waited for until then is more.
func onlyCancelled(err error) bool {
	if held := new(*journal.HeldError); errors.As(err, held) {
		return false
	}
	switch e := err.(type) { //nolint:errorlint // each layer is looked at
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !onlyCancelled(err) })
	case interface{ Unwrap() error }:
		return onlyCancelled(e.Unwrap())
	}
	return err == nil || err == context.Canceled //nolint:errorlint // nothing is wrapped any more
}

func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.stderr, "deadpeer: "+format+"\n", args...)
}

// Command is the whole command line, for those who describe it.
func Command() *cobra.Command {
	return (&app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}).root()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "deadpeer",
		Short: "Find the TCP connections whose peer is gone, prove it, and release them",
		Long: `deadpeer finds the TCP connections whose peer is gone, proves it, and releases
them and whatever they hold.

FILTER is the language of ss(8): state established and ( sport = :5432 or
dst 10.0.0.0/8 ), and besides: verdict = dead, heard > 10m, comm = postgres,
pid = 42, unit = nginx.service, cookie = 81985529216486895. All of it:
deadpeer help filter.

Exit codes: 0 done, 1 failed, 2 usage, 3 done in part, 4 a privilege or kernel
feature is missing, 10 a dead peer was found (check --exit-code, beat --once),
130 interrupted.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		Version:       version(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if wrong, ok := errors.AsType[*pflag.InvalidValueError](err); ok && errors.As(err, new(*strconv.NumError)) {
			err = fmt.Errorf("--%s: %q is not a whole number, or too large a one", wrong.GetFlag().Name, wrong.GetValue())
		}
		return usage(fmt.Errorf("%w%s", err, suggestFlag(cmd, err)))
	})
	root.AddCommand(
		a.scan(),
		a.check(),
		a.release(),
		a.attach(),
		a.detach(),
		a.run(),
		a.watcher(),
		a.sessions(),
		a.forecast(),
		a.profiles(),
		a.trace(),
		a.surveyPath(),
		a.advise(),
		a.tune(),
		a.beat(),
		a.doctor(),
		a.demo(),
		filterTopic(),
	)
	// cobra would add these two later, and let their arguments be anything.
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if strings.Contains(c.Use, "FILTER") {
			c.Long += "\n\nFILTER: see deadpeer help filter."
			c.ValidArgsFunction = completeFilter
		}
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, words []string) error {
				found, rest, err := root.Find(words)
				if err != nil {
					return err
				}
				return noSuchCommand(found, rest)
			}
		case "completion":
			c.Args = noSuchCommand
			c.RunE = root.RunE
		}
	}
	wrapUsage(root)
	return root
}

// noSuchCommand refuses words that are no command, and says which was meant.
func noSuchCommand(cmd *cobra.Command, words []string) error {
	if len(words) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	if meant := conn.Nearest(words[0], names); meant != "" {
		return fmt.Errorf("unknown command %q, did you mean %q", words[0], meant)
	}
	return fmt.Errorf("unknown command %q", words[0])
}

// arguments wants at least and at most so many.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, words []string) error {
		switch {
		case len(words) < least:
			return fmt.Errorf("argument missing: %s", cmd.UseLine())
		case len(words) <= most:
			return nil
		}
		extra := words[most]
		if cmd.Flags().Lookup("profile") != nil && slices.Contains(profileNames(), extra) {
			return fmt.Errorf("argument %q: did you mean --profile %s", extra, extra)
		}
		return fmt.Errorf("argument %q is one too many: %s", extra, cmd.UseLine())
	}
}

// wrapUsage turns cobra's complaints about arguments into usage errors.
func wrapUsage(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, words []string) error {
			if err := args(cmd, words); err != nil {
				return usage(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapUsage(sub)
	}
}
