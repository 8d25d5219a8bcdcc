package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
)

// common are the flags of every command that selects connections.
type common struct {
	output      string
	netns       string
	pid         positive
	comm        string
	unit        string
	cgroup      string
	timeout     duration
	verbose     bool
	noColor     bool
	noOwners    bool
	noBPF       bool
	by          string // "program", "unit" or "peer": show groups instead
	fresh       duration
	stuckAfter  duration
	leakedAfter duration
	silence     duration
	databases   []string
}

// duration is a flag in the language of durations: Go's, d and w.
type duration time.Duration

// String is for help.
func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Set reads the flag.
func (d *duration) Set(s string) error {
	v, err := conn.ParseDuration(s)
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("%q is not a positive duration", s)
	}
	*d = duration(v)
	return nil
}

// Type is for help.
func (*duration) Type() string { return "duration" }

var _ pflag.Value = (*duration)(nil)

func (a *app) addCommon(cmd *cobra.Command, rules bool) {
	c, f := &a.common, cmd.Flags()
	addOutput(cmd, &c.output, "table", "wide", "json", "jsonl")
	a.addSelection(cmd)
	f.BoolVar(&c.noColor, "no-color", false, "no colour (also: environment NO_COLOR)")
	f.Var(&c.leakedAfter, "leaked-after", "CLOSE-WAIT for this long is leaked (default 5m)")
	if !rules {
		f.Var(&c.fresh, "fresh", "heard within this is alive without asking (default 10s)")
		return
	}
	f.Var(&c.timeout, "timeout", "longest time to go on asking (default 30s)")
	f.Var(&c.stuckAfter, "stuck-after", "data that does not move for this long is stuck (default 5m)")
	f.Var(&c.silence, "silence", "unbroken silence a release needs (default 60s)")
}

// addSelection adds the flags that say which connections.
func (a *app) addSelection(cmd *cobra.Command) {
	c, f := &a.common, cmd.Flags()
	addNetns(cmd, &c.netns, "current", "all")
	f.Var(&c.pid, "pid", "only connections of this process")
	f.StringVar(&c.comm, "comm", "", "only connections of programs of this `name` (glob)")
	f.StringVar(&c.unit, "unit", "", "only connections of this systemd `unit` (glob)")
	f.StringVar(&c.cgroup, "cgroup", "", "only connections of sockets in this cgroup v2 `path`")
	f.BoolVarP(&c.verbose, "verbose", "v", false, "say how things were found out")
	f.BoolVar(&c.noBPF, "no-bpf", false, "look into programs without BPF")
	_ = f.MarkHidden("no-bpf") // the flag was added just now
}

// addNetns adds --netns, which takes some words beside namespaces, the first
// being the default.
func addNetns(cmd *cobra.Command, value *string, words ...string) {
	*value = words[0]
	cmd.Flags().Var(&netnsFlag{value, words}, "netns", "network `namespace`: "+strings.Join(words, ", ")+", a name in /run/netns, a path or a pid")
	complete := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names := slices.Clone(words)
		entries, _ := os.ReadDir("/run/netns") // where it is not, no namespace has a name
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, cobra.ShellCompDirectiveDefault // files, too
	}
	if err := cmd.RegisterFlagCompletionFunc("netns", complete); err != nil {
		panic(err) // the flag was added just now
	}
}

// netnsFlag is a network namespace, or one of some words.
type netnsFlag choice

// String is for help.
func (n *netnsFlag) String() string { return *n.value }

// Set reads the flag.
func (n *netnsFlag) Set(s string) error {
	if s == "all" && !slices.Contains(n.words, s) {
		return errors.New("one network namespace at a time")
	}
	*n.value = s
	return nil
}

// Type is for help.
func (*netnsFlag) Type() string { return "string" }

// choice is a flag that takes one of some words.
type choice struct {
	value *string
	words []string
}

// String is for help.
func (c *choice) String() string { return *c.value }

// Set reads the flag.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("allowed is %s", strings.Join(c.words, ", "))
	}
	*c.value = s
	return nil
}

// Type is for help.
func (*choice) Type() string { return "string" }

// positive is a flag that counts, from 1 on.
type positive int

// String is for help.
func (n *positive) String() string { return strconv.Itoa(int(*n)) }

// Set reads the flag.
func (n *positive) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil || v < 1 {
		return fmt.Errorf("%q is not a number from 1 on", conn.Printable(s))
	}
	*n = positive(v)
	return nil
}

// Type is for help.
func (*positive) Type() string { return "int" }

// addOutput adds --output, the first of the formats being the default.
func addOutput(cmd *cobra.Command, value *string, formats ...string) {
	last := len(formats) - 1
	*value = formats[0]
	addChoice(cmd, value, "output", "o", fmt.Sprintf("`format`: %s or %s", strings.Join(formats[:last], ", "), formats[last]), formats...)
}

// addChoice adds a flag that takes one of the words; value has the default.
func addChoice(cmd *cobra.Command, value *string, name, short, usage string, words ...string) {
	cmd.Flags().VarP(&choice{value, words}, name, short, usage)
	complete := cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // the flag was added just now
	}
}

// engine is what the common flags make of it.
func (a *app) engine() *engine.Engine { return engine.New(engine.Options{NoBPF: a.common.noBPF}) }

// request reads the common flags and the filter.
func (a *app) request(words []string) (engine.Request, error) {
	c := a.common
	filter, err := conn.ParseFilter(words, resolver())
	if err != nil {
		return engine.Request{}, err
	}
	flags, err := conn.ParseFilter(c.predicates(), resolver())
	if err != nil {
		return engine.Request{}, err
	}
	filter = filter.And(flags)
	if silence, timeout := time.Duration(c.silence), time.Duration(c.timeout); silence > engine.MaxAsking || timeout > engine.MaxAsking-silence {
		return engine.Request{}, usage(errors.New("--silence and --timeout: more than 4 days"))
	}
	databases, err := a.databases()
	if err != nil {
		return engine.Request{}, err
	}
	return engine.Request{
		Netns:  c.netns,
		Filter: filter,
		Rules: verdict.Rules{
			Silence: time.Duration(c.silence), Fresh: time.Duration(c.fresh),
			StuckAfter: time.Duration(c.stuckAfter), LeakedAfter: time.Duration(c.leakedAfter),
		},
		NoOwners: c.noOwners,
		Memory:   c.output == "wide",
		Settings: c.output != "table",
		Timeout:  time.Duration(c.timeout),

		Databases: databases,
	}, nil
}

func resolver() conn.Resolver {
	return conn.Resolver{
		Port: func(name string) (uint16, bool) {
			p, err := net.LookupPort("tcp", name)
			return uint16(p), err == nil
		},
		Interface: func(name string) (uint32, bool) {
			i, err := net.InterfaceByName(name)
			if err != nil {
				return 0, false
			}
			return uint32(i.Index), true
		},
		Cgroup: cgroupID,
	}
}

// suggestFlag finds the flag that an unknown one may have meant.
func suggestFlag(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return "; see " + cmd.CommandPath() + " --help"
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if best := conn.Nearest(unknown.GetSpecifiedName(), names); best != "" {
		return "; did you mean --" + best + "?"
	}
	return "; see " + cmd.CommandPath() + " --help"
}

// predicates are the flags that select, as words of a filter.
func (c common) predicates() []string {
	var words []string
	add := func(name, value string) {
		if value != "" {
			if len(words) > 0 {
				words = append(words, "and")
			}
			words = append(words, name, "=", conn.Quote(value))
		}
	}
	if c.pid != 0 {
		add("pid", c.pid.String())
	}
	add("comm", c.comm)
	add("unit", c.unit)
	add("cgroup", c.cgroup)
	return words
}
