package cli

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/jiffies"
	"deadpeer/keepalive"
)

// policyFlags are how a policy is given wherever one is taken.
type policyFlags struct {
	profile     string
	within      duration
	idle        duration
	interval    duration
	probes      positive
	userTimeout duration
}

func (p *policyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.profile, "profile", "", "the policy of this `name`; see deadpeer profiles")
	f.Var(&p.within, "within", "the policy that gives an idle connection's vanished peer up after this time")
	f.Var(&p.idle, "idle", "silence before the first probe")
	f.Var(&p.interval, "interval", "time between probes")
	f.Var(&p.probes, "probes", "how many probes must go unanswered")
	f.Var(&p.userTimeout, "user-timeout", "how long data may go unacknowledged (default none)")
	complete := cobra.FixedCompletions(profileNames(), cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("profile", complete); err != nil {
		panic(err) // the flag was added just now
	}
}

// withinHasUserTimeout says so of the flag, where nobody else's connection can
// be hurt by one.
func withinHasUserTimeout(cmd *cobra.Command) {
	cmd.Flags().Lookup("within").Usage += ", data in flight too (user timeout)"
}

// policy is what the flags say. What they leave open comes from base.
func (p *policyFlags) policy(base keepalive.Policy) (_ keepalive.Policy, err error) {
	parts := p.idle != 0 || p.interval != 0 || p.probes != 0
	switch {
	case p.profile != "" && p.within != 0, (p.profile != "" || p.within != 0) && parts:
		return base, errors.New("give one of --profile, --within, or --idle with --interval and --probes")
	case p.profile != "":
		var profile keepalive.Profile
		if profile, err = keepalive.ProfileByName(p.profile); err != nil {
			return base, fmt.Errorf("--profile: %w", err)
		}
		base = profile.Policy
	case p.within != 0:
		if base, err = keepalive.Within(time.Duration(p.within)); err != nil {
			return base, fmt.Errorf("--within: %w", err)
		}
	}
	if p.idle != 0 {
		base.Idle = roundUp(p.idle, time.Second)
	}
	if p.interval != 0 {
		base.Interval = roundUp(p.interval, time.Second)
	}
	if p.probes != 0 {
		base.Probes = int(p.probes)
	}
	if p.userTimeout != 0 {
		base.UserTimeout = roundUp(p.userTimeout, time.Millisecond)
	}
	return base, nil
}

// roundUp is what a kernel takes a time for that is not in its unit.
func roundUp(d duration, unit time.Duration) time.Duration {
	if rest := time.Duration(d) % unit; rest > 0 {
		return time.Duration(d) - rest + unit
	}
	return time.Duration(d)
}

func (a *app) forecast() *cobra.Command {
	var output, situation, svg, html string
	var policy policyFlags
	var rtt, rto, finTimeout, probedFor duration
	var off bool
	in := forecast.Input{}
	cmd := &cobra.Command{
		Use:   "forecast",
		Short: "Say when the kernel would give a connection up, step by step",
		Long: `forecast says when, by which rule and with which error the kernel gives a
connection up whose peer is gone, for a policy and a situation. Without a policy
it takes the system's defaults (Linux: 7200 s, 9 probes 75 s apart). Linux's
timers may be late by up to an eighth, so there are two times: not before, and
at the latest.

Times count from the last segment received (idle, rebooted, close-wait), the
write (in-flight, mid-probe-write, arp-failing), the SYN, the FIN, the cut
(zero-window), or the shutting of the window (zero-window-alive).

Situations: ` + wrap(strings.Join(situationNames(), ", ")+".", len("Situations: ")),
		Example: `  deadpeer forecast --profile lan
  deadpeer forecast --within 90s --situation in-flight --rtt 40ms
  deadpeer forecast --situation in-flight --svg in-flight.svg
  deadpeer forecast --no-keepalive`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if svg == "-" && html == "-" {
				return usage(errors.New("--svg - and --html -: only one of them can be stdout"))
			}
			if in.OS == "macos" {
				in.OS = "darwin"
			}
			p, err := policy.policy(defaultsOf(in.OS))
			if err != nil {
				return usage(err)
			}
			if err := policy.conflict(cmd.Flags(), situation, off); err != nil {
				return usage(err)
			}
			in.KeepAlive, in.Policy = !off, p
			in.RTT, in.RTO = time.Duration(rtt), time.Duration(rto)
			in.FinTimeout, in.ProbedFor = time.Duration(finTimeout), time.Duration(probedFor)
			for flag, value := range map[string]*int{"retries2": &in.Retries2, "syn-retries": &in.SYNRetries} {
				if cmd.Flags().Changed(flag) && *value == 0 {
					*value = -1 // 0 is the default in an Input
				}
			}
			if in.HZ == 0 {
				in.HZ = jiffies.HZ()
			}
			f, err := forecast.For(forecast.Situation(situation), in)
			if err != nil {
				return usage(suggestSituation(err, situation))
			}
			if svg != "" {
				if err := a.writeFile(svg, forecastPicture(f, in).SVG); err != nil {
					return fmt.Errorf("--svg: %w", err)
				}
			}
			if html != "" {
				if err := a.writeFile(html, forecastPage(f, in).HTML); err != nil {
					return fmt.Errorf("--html: %w", err)
				}
			}
			if svg == "-" || html == "-" {
				return nil // stdout is the picture's
			}
			if output == "json" {
				return a.forecastJSON(f, in)
			}
			return a.forecastTable(f, in)
		},
	}
	addOutput(cmd, &output, "table", "json")
	f := cmd.Flags()
	f.StringVar(&svg, "svg", "", "write a picture of the timeline to this `file` (- for stdout)")
	f.StringVar(&html, "html", "", "write a page with the picture and the steps to this `file` (- for stdout)")
	f.StringVar(&situation, "situation", "idle", "`name` of what the connection is in the middle of")
	policy.add(cmd)
	withinHasUserTimeout(cmd)
	f.BoolVar(&off, "no-keepalive", false, "keepalive is off")
	f.Var(&rtt, "rtt", "smoothed round-trip time (default 100us)")
	f.Var(&rto, "rto", "retransmission timeout before backoff (default rtt + 200ms)")
	f.IntVar(&in.Retries2, "retries2", 15, "tcp_retries2")
	f.IntVar(&in.SYNRetries, "syn-retries", 0, "tcp_syn_retries (default 6); in syn-received tcp_synack_retries (default 5)")
	f.IntVar(&in.OrphanRetries, "orphan-retries", 0, "tcp_orphan_retries; 0 is 8")
	f.Var(&finTimeout, "fin-timeout", "tcp_fin_timeout (default 60s)")
	f.Var(&probedFor, "probed-for", "zero window: how long probes had been answered")
	f.IntVar(&in.HZ, "hz", 0, "the kernel's CONFIG_HZ (default this host's)")
	in.OS = "linux"
	addChoice(cmd, &in.OS, "os", "", "linux, macos, windows, freebsd or openbsd; other than Linux only idle, as documented",
		"linux", "macos", "windows", "freebsd", "openbsd")
	complete := cobra.FixedCompletions(situationNames(), cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("situation", complete); err != nil {
		panic(err) // the flag was added just now
	}
	return cmd
}

// flagSituations are those in which a flag of forecast has a part.
var flagSituations = map[string][]string{
	"retries2":       {"in-flight", "zero-window", "zero-window-alive", "mid-probe-write", "arp-failing"},
	"syn-retries":    {"syn-sent", "syn-received"},
	"orphan-retries": {"fin-wait-1", "last-ack"},
	"fin-timeout":    {"fin-wait-2"},
	"probed-for":     {"zero-window"},
}

// conflict refuses flags that would have no part.
func (p *policyFlags) conflict(f *pflag.FlagSet, situation string, off bool) error {
	if with := *p; off {
		with.userTimeout = 0
		if with != (policyFlags{}) {
			return errors.New("--no-keepalive leaves no policy but --user-timeout: give one or the other")
		}
	}
	if f.Changed("hz") && f.Lookup("hz").Value.String() == "0" {
		return errors.New("--hz 0: give the kernel's CONFIG_HZ, usually 100, 250, 300 or 1000, or leave it out for this host's")
	}
	for _, flag := range slices.Sorted(maps.Keys(flagSituations)) {
		if in := flagSituations[flag]; f.Changed(flag) && slices.Contains(situationNames(), situation) && !slices.Contains(in, situation) {
			return fmt.Errorf("--%s has no part in %s: give --situation %s", flag, situation, strings.Join(in, " or "))
		}
	}
	return nil
}

// defaultsOf is the policy a system comes with.
func defaultsOf(goos string) keepalive.Policy {
	p := keepalive.Policy{Idle: 2 * time.Hour, Interval: 75 * time.Second, Probes: 8}
	switch goos {
	case "linux":
		p.Probes = 9
	case "windows":
		p.Interval, p.Probes = time.Second, 10
	}
	return p
}

func situationNames() (names []string) {
	for _, s := range forecast.Situations() {
		names = append(names, string(s))
	}
	return names
}

func profileNames() (names []string) {
	for _, p := range keepalive.Profiles() {
		names = append(names, p.Name)
	}
	return names
}

// wrap breaks text between words for a terminal of 80 columns, used of which
// are taken on the first line.
func wrap(text string, used int) string {
	const width = 80
	var b strings.Builder
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case b.Len() == 0:
		case used+1+n > width:
			b.WriteByte('\n')
			used = 0
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += n
	}
	return b.String()
}

func suggestSituation(err error, situation string) error {
	if meant := conn.Nearest(situation, situationNames()); meant != "" && meant != situation {
		return fmt.Errorf("%w; did you mean %s?", err, meant)
	}
	return err
}

type jsonForecastPolicy struct {
	IdleS         float64 `json:"idle_s"`
	IntervalS     float64 `json:"interval_s"`
	Probes        int     `json:"probes"`
	UserTimeoutMS int64   `json:"user_timeout_ms"`
}

func newJSONForecastPolicy(p keepalive.Policy) jsonForecastPolicy {
	return jsonForecastPolicy{p.Idle.Seconds(), p.Interval.Seconds(), p.Probes, max(0, p.UserTimeout.Milliseconds())}
}

func (a *app) forecastJSON(f forecast.Forecast, in forecast.Input) error {
	out := struct {
		Schema    int                `json:"schema"`
		KeepAlive bool               `json:"keepalive"`
		Policy    jsonForecastPolicy `json:"policy"`
		forecast.Report
	}{1, in.KeepAlive, newJSONForecastPolicy(in.Policy), f.Report()}
	return newEncoder(a.stdout).Encode(out)
}

// forecastTable draws the steps on a line of time, and says what ends it.
func (a *app) forecastTable(f forecast.Forecast, in forecast.Input) error {
	const shown = 24 // steps; the rest are of the same kind
	const width = 40
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s, %s\n\n", f.Situation, policyText(in))
	end := f.Latest
	if !f.GivesUp && len(f.Steps) > 0 {
		end = f.Steps[len(f.Steps)-1].Latest
	}
	bar := func(at time.Duration, mark string) string {
		n := 0
		if end > 0 {
			n = int(math.Round(float64(at) / float64(end) * width))
		}
		return strings.Repeat("·", min(n, width)) + mark
	}
	for i, s := range f.Steps {
		if i == shown {
			fmt.Fprintf(w, "… and %d more\t\t\n", len(f.Steps)-i)
			break
		}
		fmt.Fprintf(w, "%s %d\t%s\t%s\n", s.What, s.N, stepTime(s.Earliest, s.Latest), bar(s.Earliest, "|"))
	}
	if !f.GivesUp {
		fmt.Fprint(w, "never given up: it stays for ever\n")
		return w.Flush()
	}
	errno := f.Errno
	if errno == "" {
		errno = "no error: it does not hold the connection"
	}
	fmt.Fprintf(w, "given up\t%s\t%s\n", stepTime(f.Earliest, f.Latest), bar(f.Earliest, "X"))
	fmt.Fprintf(w, "\nrule %s, the program gets %s\n", f.Rule, errno)
	if f.ArticleBound > 0 && f.Rule == forecast.KeepAlive {
		fmt.Fprintf(w, "older texts say idle + (probes + 1) × interval = %s; the kernel does not wait\nfor another interval after the one that follows the last probe\n", seconds(f.ArticleBound))
	}
	if f.Documented {
		fmt.Fprintf(w, "by that system's documents, not measured\n")
	} else {
		fmt.Fprintf(w, "with HZ=%d; timers may be late, never early\n", f.HZ)
	}
	return w.Flush()
}

func policyText(in forecast.Input) string {
	p := in.Policy
	text := "keepalive off"
	if in.KeepAlive {
		text = fmt.Sprintf("keepalive after %s, %d probes %s apart", seconds(p.Idle), p.Probes, seconds(p.Interval))
	}
	if p.UserTimeout > 0 {
		text += ", user timeout " + seconds(p.UserTimeout)
	}
	return text
}

func stepTime(earliest, latest time.Duration) string {
	if earliest == latest {
		return seconds(earliest)
	}
	return seconds(earliest) + " to " + seconds(latest)
}

func seconds(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", d.Seconds()), "0"), ".") + " s"
}
