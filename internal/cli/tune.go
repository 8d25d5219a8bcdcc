package cli

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/jiffies"
	"deadpeer/keepalive"
)

func (a *app) tune() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tune",
		Short: "Show and set the host's keepalive defaults, now and for the next boot",
		Long: `tune works on the values that the host gives to connections without any of their
own. They matter for programs that switch keepalive on and leave the rest to the
system. For programs that do not switch it on, none of this does anything: scan
shows which those are.

On Linux every network namespace has values of its own, and a new one starts
with the kernel's defaults, so containers do not follow the host.`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.tuneShow(), a.tuneSet(), a.tuneDiff(), a.tuneRestore(), a.tuneExplain())
	return cmd
}

func (a *app) tuneShow() *cobra.Command {
	var output, netns string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the defaults in force, those after the next boot, and which line sets them",
		Long: `show lists the values that connections without their own have now, those they
will have after the next boot, and the file and line that sets them then: of all
files that systemd-sysctl(8) and sysctl(8) --system read, by the rules of the one
this host boots with. Where the other would come to another value, that is said.
It changes nothing and needs no privilege but to read those files; without it the
values in force are shown, with exit code 3.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, err := a.engine().Tuning(cmd.Context(), engine.TuneRequest{Netns: netns})
			if err != nil {
				return err
			}
			if output == "json" {
				err = a.tuneJSON(state)
			} else {
				err = a.tuneTable(state)
			}
			return errors.Join(err, notAll(state))
		},
	}
	addOutput(cmd, &output, "table", "json")
	addNetns(cmd, &netns, "current")
	return cmd
}

func (a *app) tuneTable(state engine.Tuning) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tNOW\tAT BOOT\tDEFAULT\tSET BY")
	for _, s := range state.Settings {
		by := "-"
		if s.Persisted != nil {
			by = conn.Printable(s.Persisted.Where())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Name, tuneText(s, s.Live, "?"), tuneText(s, atBoot(state, s), "-"), s.Text(s.Default), by)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	for _, line := range meaning(state, engine.TuneSetting.Now) {
		fmt.Fprintln(a.stdout, line)
	}
	a.tuneRemarks(state)
	return nil
}

// notAll says what could not be read.
func notAll(state engine.Tuning) error {
	switch {
	case state.BootErr != nil:
		return &exit{exitPartly, fmt.Errorf("what the next boot sets is not known: %w", state.BootErr)}
	case state.JournalErr != nil:
		return &exit{exitPartly, state.JournalErr}
	}
	return nil
}

// atBoot is what will be in force after the next boot, nil where no file of
// this host decides that, or it is not known.
func atBoot(state engine.Tuning, s engine.TuneSetting) *int64 {
	if state.BootErr != nil || state.NoFile != "" && s.Persisted == nil {
		return nil
	}
	return new(s.AtBoot())
}

func tuneText(s engine.TuneSetting, v *int64, unknown string) string {
	if v == nil {
		return unknown
	}
	return s.Text(*v)
}

// tuneRemarks says what the table has no column for.
func (a *app) tuneRemarks(state engine.Tuning) {
	for _, s := range state.Settings {
		switch {
		case s.LiveErr != nil:
			a.say("%v", s.LiveErr)
		case s.Differs:
			second := "its default"
			if s.Second != nil {
				second = conn.Printable(s.Second.Where())
			}
			a.say("%s: %s reads the files otherwise and would take it from %s", s.Name, state.Other, second)
		}
	}
	if state.NoFile != "" {
		a.say("%s", state.NoFile)
	}
	switch {
	case state.Interrupted:
		a.say("a change was interrupted; deadpeer tune restore puts everything back")
	case !state.Changed.IsZero():
		a.say("changed by deadpeer since %s; deadpeer tune restore puts back what was before", state.Changed.Format(time.RFC3339))
	case state.Unrecorded != nil:
		a.sayUnrecorded(state.Unrecorded)
	}
}

// policyOfHost are the values that a socket without its own has.
func policyOfHost(state engine.Tuning, value func(engine.TuneSetting) int64) keepalive.Policy {
	get := func(part engine.TunePart, fallback float64) float64 {
		if s, ok := state.Part(part); ok {
			return s.Portable(value(s))
		}
		return fallback
	}
	seconds := func(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }
	return keepalive.Policy{
		Idle: seconds(get(engine.TuneIdle, 0)), Interval: seconds(get(engine.TuneInterval, 0)),
		Probes: int(get(engine.TuneProbes, 10)), // Windows has no parameter for its 10
	}
}

// meaning tells what values come to.
func meaning(state engine.Tuning, value func(engine.TuneSetting) int64) (lines []string) {
	p := policyOfHost(state, value)
	lines = append(lines, "A peer that vanishes is given up, where programs leave it to the host,",
		fmt.Sprintf("  idle, keepalive on   %s after its last segment", span(forecast.DetectionTime(p))))
	if d := inFlight(state, value); d > 0 {
		lines = append(lines, fmt.Sprintf("  with data in flight  %s after the write (round trip 0.1 ms)", span(d)))
	}
	if syn, ok := state.Part(engine.TuneSYNRetries); ok {
		f, err := forecast.For(forecast.SituationSynSent, forecast.Input{HZ: jiffies.HZ(), SYNRetries: int(value(syn))})
		if err == nil {
			lines = append(lines, fmt.Sprintf("  while connecting     %s after the first SYN", span(f.Earliest)))
		}
	}
	return lines
}

// inFlight is when data that is not acknowledged ends a connection at the
// earliest; 0 where that is not modelled.
func inFlight(state engine.Tuning, value func(engine.TuneSetting) int64) time.Duration {
	retries, ok := state.Part(engine.TuneRetries2)
	if _, linux := state.Part(engine.TuneOrphanRetries); !ok || !linux {
		return 0
	}
	f, err := forecast.For(forecast.SituationInFlight, forecast.Input{HZ: jiffies.HZ(), Retries2: zeroIsNone(value(retries))})
	if err != nil {
		return 0
	}
	return f.Earliest
}

// zeroIsNone spells a count for forecast.Input, where 0 is the default.
func zeroIsNone(v int64) int {
	if v == 0 {
		return -1
	}
	return int(v)
}

// tuneFlags are what is to be set.
type tuneFlags struct {
	policyFlags
	retries2, synRetries, orphanRetries int
}

func (t *tuneFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	t.policyFlags.add(cmd)
	f.IntVar(&t.retries2, "retries2", 0, "tcp_retries2: how long data in flight is retransmitted (15: a quarter of an hour)")
	f.IntVar(&t.synRetries, "syn-retries", 0, "tcp_syn_retries: how often the SYN of a connect is repeated")
	f.IntVar(&t.orphanRetries, "orphan-retries", 0, "tcp_orphan_retries: for connections no program holds; 0 is 8")
	f.Lookup("user-timeout").Usage = "refused: no system has a default for it"
}

// values are what the flags say; what they leave open is not in it.
func (t *tuneFlags) values(cmd *cobra.Command) (map[engine.TunePart]int64, error) {
	if t.userTimeout != 0 {
		return nil, errors.New("--user-timeout: no system has a default for it: set it in the program (TCP_USER_TIMEOUT), and --retries2 here")
	}
	p, err := t.policy(keepalive.Policy{})
	if err == nil {
		p.UserTimeout = -1 // of --within: the host has none
		err = p.Validate()
	}
	if err != nil {
		return nil, err
	}
	values := map[engine.TunePart]int64{}
	for part, v := range map[engine.TunePart]int64{
		engine.TuneIdle: wholeSeconds(p.Idle), engine.TuneInterval: wholeSeconds(p.Interval), engine.TuneProbes: int64(p.Probes),
	} {
		if v != 0 {
			values[part] = v
		}
	}
	for flag, v := range map[string]struct {
		part  engine.TunePart
		value int
	}{
		"retries2":       {engine.TuneRetries2, t.retries2},
		"syn-retries":    {engine.TuneSYNRetries, t.synRetries},
		"orphan-retries": {engine.TuneOrphanRetries, t.orphanRetries},
	} {
		if cmd.Flags().Changed(flag) {
			values[v.part] = int64(v.value)
		}
	}
	return values, nil
}

func wholeSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func (a *app) tuneExplain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [NAME]",
		Short: "Say what a parameter decides, on any system; without a name, all of them",
		Long: `explain tells of the parameters of Linux, FreeBSD, macOS and Windows, those of
Windows 95, 98 and ME and of NT included: where each is set, its type and unit,
its default, and what depends on it. Names are found whatever their case.`,
		Example: `  deadpeer tune explain tcp_keepalive_time
  deadpeer tune explain KeepAliveInterval`,
		Args: arguments(0, 1),
		ValidArgsFunction: func(_ *cobra.Command, given []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			entries, err := engine.ExplainTuning("")
			if err != nil || len(given) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			for _, e := range entries {
				names = append(names, e.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, words []string) error {
			name := ""
			if len(words) > 0 {
				name, _, _ = strings.Cut(words[0], "=")
			}
			entries, err := engine.ExplainTuning(name)
			if err != nil {
				return usage(err)
			}
			w := bufio.NewWriter(a.stdout)
			for i, e := range entries {
				if i > 0 {
					fmt.Fprintln(w)
				}
				fmt.Fprintf(w, "%s (%s)\n  %s\n  where    %s\n  type     %s\n  default  %s\n  by hand  %s\n", e.Name, e.System, e.Decides, e.Where, e.Type, e.Default, e.ByHand)
			}
			return w.Flush()
		},
	}
}
