package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

func (a *app) tuneSet() *cobra.Command {
	var flags tuneFlags
	var r engine.TuneRequest
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Set the host's keepalive defaults, now and for the next boot",
		Long: `set writes the values of a policy to the kernel and, for the next boot, to
/etc/sysctl.d/90-deadpeer.conf. What was there before is journalled first, in
/var/lib/deadpeer: deadpeer tune restore puts it back, after a kill -9 as well.
If something fails midway, what was done is undone. Where another line will win
at boot, that is said and the exit code is 3.

A new value reaches connections opened from now on. A timer that is armed
already does not see it: set tells how many connections keep their old expiry,
and --existing re-arms them, so that each has the new idle time before it. This
sends nothing, and leaves out sockets with values of their own and those that
are being probed: those are held to the new number of probes at once. Protected
connections are not left out.

Files are for the namespace the host boots with: in another one only the values
in force are set. On Windows a reboot is needed.`,
		Example: `  sudo deadpeer tune set --profile lan
  sudo deadpeer tune set --within 90s --retries2 8 --existing
  sudo deadpeer tune set --idle 60s --interval 10s --probes 6 --dry-run`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if r.Change.Values, err = flags.values(cmd); err != nil {
				return usage(err)
			}
			if len(r.Change.Values) == 0 {
				return usage(errors.New("give a policy: --profile, --within, or --idle, --interval and --probes; or --retries2, --syn-retries, --orphan-retries"))
			}
			return a.runTuneSet(cmd.Context(), r)
		},
	}
	flags.add(cmd)
	addNetns(cmd, &r.Netns, "current")
	f := cmd.Flags()
	f.BoolVar(&r.Change.LiveOnly, "live-only", false, "leave the next boot as it is")
	f.BoolVar(&r.Existing, "existing", false, "re-arm the timers of connections that are open already")
	f.BoolVar(&r.DryRun, "dry-run", false, "show what would change, and change nothing")
	return cmd
}

func (a *app) runTuneSet(ctx context.Context, r engine.TuneRequest) error {
	e := a.engine()
	before, err := e.Tuning(ctx, r)
	if err != nil {
		return err
	}
	done, err := e.Tune(ctx, r)
	if outOfRange, ok := errors.AsType[*engine.TuneRange](err); ok {
		return usage(outOfRange)
	} else if !done.Done {
		return err
	}
	a.showTuned(before, done, r)
	switch {
	case err != nil: // of what comes after setting
		return &exit{exitPartly, fmt.Errorf("the values are set; but %w", err)}
	case len(done.Lost) > 0:
		return &exit{exitPartly, fmt.Errorf("%s will not be in force after a reboot", count(len(done.Lost), "value"))}
	case len(done.Without) > 0:
		return &exit{exitPartly, fmt.Errorf("this system has no parameter for %v", done.Without)}
	case r.Existing && !r.DryRun && done.Existing.Rearmed < done.Existing.Old:
		return &exit{exitPartly, fmt.Errorf("%s not re-armed", count(done.Existing.Old-done.Existing.Rearmed, "connection"))}
	}
	return nil
}

func (a *app) showTuned(before engine.Tuning, done engine.Tuned, r engine.TuneRequest) {
	dry := r.DryRun
	for _, m := range done.Mended {
		a.say("%s", m)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	to := map[string]int64{}
	for _, l := range done.Live {
		from := "not set"
		if l.From != nil {
			from = l.Text(*l.From)
		}
		to[l.Name] = l.To
		fmt.Fprintf(w, "%s\t%s\t→ %s\n", l.Name, from, l.Text(l.To))
	}
	_ = w.Flush()
	if f := done.File; f != nil {
		a.showFile(*f, dry)
	}
	after := func(s engine.TuneSetting) int64 {
		if v, ok := to[s.Name]; ok {
			return v
		}
		return s.Now()
	}
	was := forecast.DetectionTime(policyOfHost(before, engine.TuneSetting.Now))
	is := forecast.DetectionTime(policyOfHost(before, after))
	if was != is {
		fmt.Fprintf(a.stdout, "an idle peer that vanishes is given up after %s → %s\n", span(was), span(is))
	}
	was, is = inFlight(before, engine.TuneSetting.Now), inFlight(before, after)
	if was != is {
		fmt.Fprintf(a.stdout, "a peer that vanishes with data in flight is given up after %s → %s\n", span(was), span(is))
	}
	a.showExisting(done.Existing, r)
	if dry {
		a.say("nothing was changed")
	}
	if done.Reboot && !dry {
		a.say("in force after a reboot")
	}
	for i, l := range done.Lost {
		switch {
		case l.Why == "":
			a.say("%s", conn.Printable(l.String()))
		case i == 0: // and of all of them
			a.say("none of it will outlast a reboot: %s", conn.Printable(l.Why))
		}
	}
	for _, l := range done.LostBy {
		if !slices.ContainsFunc(done.Lost, func(m engine.TuneLoss) bool { return m.Name == l.Name }) {
			a.say("%s", conn.Printable(l.String()))
		}
	}
	for _, n := range done.Notes {
		a.say("%s", n.Text)
	}
}

// showFile tells what becomes of the file, for a dry run line by line.
func (a *app) showFile(f engine.TuneFile, dry bool) {
	switch {
	case !dry && f.Removed():
		fmt.Fprintf(a.stdout, "%s removed\n", f.Path)
	case !dry:
		fmt.Fprintf(a.stdout, "%s written\n", f.Path)
	default:
		fmt.Fprintf(a.stdout, "%s\n", f.Path)
		before, after := bytes.SplitAfter(f.Before, []byte("\n")), bytes.SplitAfter(f.After, []byte("\n"))
		for _, side := range []struct {
			mark        string
			lines, from [][]byte
		}{{"-", before, after}, {"+", after, before}} {
			for _, line := range side.lines {
				if len(line) > 0 && !slices.ContainsFunc(side.from, func(o []byte) bool { return bytes.Equal(o, line) }) {
					fmt.Fprintf(a.stdout, "  %s %s\n", side.mark, conn.Printable(string(bytes.TrimSuffix(line, []byte("\n")))))
				}
			}
		}
	}
}

func (a *app) showExisting(x engine.Existing, r engine.TuneRequest) {
	if !x.Looked {
		return
	}
	verb := "keep their"
	if x.Old == 1 {
		verb = "keeps its"
	}
	if r.DryRun {
		verb = "would keep the"
	}
	switch {
	case r.DryRun && r.Existing:
		fmt.Fprintf(a.stdout, "%s with an old expiry would be re-armed, but for those being probed\n", count(x.Old, "connection"))
	case x.Rearmed > 0 || len(x.Left) > 0:
		fmt.Fprintf(a.stdout, "%d of %s with an old expiry re-armed\n", x.Rearmed, count(x.Old, "connection"))
		for _, why := range slices.Sorted(maps.Keys(x.Left)) {
			fmt.Fprintf(a.stdout, "  %d not: %s\n", x.Left[why], why)
		}
	case x.Old == 0:
		fmt.Fprintln(a.stdout, "no connection keeps an old expiry")
	default:
		fmt.Fprintf(a.stdout, "%s %s old expiry; --existing re-arms\n", count(x.Old, "connection"), verb)
	}
	if x.Unseen > 0 {
		a.say("%s may keep an old expiry, too: the settings cannot be read (needs CAP_SYS_PTRACE and a process that holds the socket)", count(x.Unseen, "connection"))
	}
}

func (a *app) tuneRestore() *cobra.Command {
	var r engine.TuneRequest
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Put back the defaults that tune set has changed",
		Long: `restore puts back what was there before the first tune set: the values in force,
and the file for the next boot byte for byte. What somebody else has set since
is left alone and told, with exit code 3. Connections keep the timers they have.`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.engine().Untune(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.showUndone(u, r.DryRun)
		},
	}
	addNetns(cmd, &r.Netns, "current")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "show what would change, and change nothing")
	return cmd
}

func (a *app) showUndone(u engine.TuneOriginal, dry bool) error {
	if f := u.Unrecorded; f != nil {
		a.say("nothing to restore: there is no record of what was here before deadpeer")
		a.sayUnrecorded(f)
		return &exit{exitPartly, errors.New("not everything is as it was before deadpeer")}
	}
	if u.Nothing {
		a.say("nothing to restore: deadpeer has changed nothing here")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, l := range u.Live {
		from := "not set"
		if l.From != nil {
			from = l.Text(*l.From)
		}
		to := l.Text(l.To)
		if l.Unset() {
			to = "not set"
		}
		fmt.Fprintf(w, "%s\t%s\t→ %s\n", l.Name, from, to)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if u.File != nil {
		a.showFile(*u.File, dry)
	}
	for _, l := range u.Left {
		a.say("%s", conn.Printable(l))
	}
	switch {
	case dry:
		a.say("nothing was changed")
	case u.Reboot:
		a.say("in force after a reboot")
	}
	if len(u.Left) > 0 {
		return &exit{exitPartly, errors.New("not everything is as it was before deadpeer")}
	}
	return nil
}

// sayUnrecorded tells of a file that deadpeer cannot put back.
func (a *app) sayUnrecorded(f *engine.TuneUnrecorded) {
	a.say("%s says that deadpeer wrote it, but there is no record of that. At boot it sets", f.Path)
	for _, line := range f.Sets {
		a.say("  %s", conn.Printable(line))
	}
	a.say("rm %s removes it; what is in force stays until the next boot", f.Path)
}

func (a *app) tuneDiff() *cobra.Command {
	var flags tuneFlags
	var netns, output string
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Tell where the defaults differ from a policy, or from the system's own",
		Long: `diff compares the values in force, and those after the next boot, with a policy,
or, where none is given, with the system's own defaults. It lists what differs.`,
		Example: `  deadpeer tune diff
  deadpeer tune diff --profile lan`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			values, err := flags.values(cmd)
			if err != nil {
				return usage(err)
			}
			state, err := a.engine().Tuning(cmd.Context(), engine.TuneRequest{Netns: netns})
			if err != nil {
				return err
			}
			return errors.Join(a.showDiff(state, values, output), notAll(state))
		},
	}
	flags.add(cmd)
	addOutput(cmd, &output, "table", "json")
	addNetns(cmd, &netns, "current")
	return cmd
}

type jsonTuneDiff struct {
	Name   string `json:"name"`
	Unit   string `json:"unit"`
	Live   *int64 `json:"live"`
	AtBoot *int64 `json:"at_boot"` // nil where no file of this host decides, or it is not known
	Wanted int64  `json:"wanted"`
}

func (a *app) showDiff(state engine.Tuning, values map[engine.TunePart]int64, output string) error {
	var list []jsonTuneDiff
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tNOW\tAT BOOT\tWANTED")
	for _, s := range state.Settings {
		wanted := s.Default
		if len(values) > 0 {
			v, ok := values[s.Part]
			if !ok {
				continue
			}
			wanted = s.InUnit(v)
		}
		boot := atBoot(state, s)
		if (s.Live == nil || *s.Live == wanted) && (boot == nil || *boot == wanted) {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, tuneText(s, s.Live, "?"), tuneText(s, boot, "-"), s.Text(wanted))
		list = append(list, jsonTuneDiff{s.Name, string(s.Unit), s.Live, boot, wanted})
	}
	if output == "json" {
		out := struct {
			Schema int            `json:"schema"`
			Differ []jsonTuneDiff `json:"differ"`
		}{1, append([]jsonTuneDiff{}, list...)}
		return newEncoder(a.stdout).Encode(out)
	}
	if len(list) == 0 {
		a.say("nothing differs")
		return nil
	}
	return w.Flush()
}
