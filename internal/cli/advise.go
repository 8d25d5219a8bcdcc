package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/internal/advise"
	"deadpeer/internal/engine"
	"deadpeer/keepalive"
)

// adviseProfile is the policy that advise takes when none is given. It fits
// most paths: at or above the least values that the article on Firebird
// recommends (1 minute, 10 s, 5 probes), within its "one or two minutes" until
// a vanished peer is given up, and under the 4 minutes after which the most
// forgetful of the common load balancers drops an idle flow.
const adviseProfile = "k8s"

// adviseFlags are the flags of advise.
type adviseFlags struct {
	policy   policyFlags
	software string
	list     bool
	log      string
	longest  duration
}

func (a *app) advise() *cobra.Command {
	var o adviseFlags
	cmd := &cobra.Command{
		Use:   "advise [FILTER...]",
		Short: "Say how to mend it for good, in the settings of the programs themselves",
		Long: `advise groups connections by program and says for each how many of them would
not notice within the policy's time that their peer is gone, and what to put into
which file of that program so that they do. Where it can, it reads the
configuration that is there, and says what is set now and whether the open
connections agree with it. It changes nothing.

Without a policy it takes profile ` + adviseProfile + `: a vanished peer is given up after
2 minutes, and idle connections are probed before the usual load balancers
forget them.

A log of Firebird or InterBase tells how often connections break. From that, and
from the longest transaction, the idle time is advised. Where one of the two
runs its log is found in the usual places; --log names one, and then no
connections are looked at.`,
		Example: `  sudo deadpeer advise
  sudo deadpeer advise --within 90s 'sport = :5432'
  deadpeer advise --software nginx --profile lan
  deadpeer advise --log firebird.log --longest-transaction 10m`,
		RunE: func(cmd *cobra.Command, words []string) error { return a.runAdvise(cmd.Context(), words, o) },
	}
	addOutput(cmd, &a.common.output, "table", "json")
	a.addSelection(cmd)
	f := cmd.Flags()
	o.policy.add(cmd)
	withinHasUserTimeout(cmd)
	f.StringVar(&o.software, "software", "", "only say what to put for this `name`; see --list")
	f.BoolVar(&o.list, "list", false, "list the software known")
	f.StringVar(&o.log, "log", "", "advise from this `file`: firebird.log or interbase.log")
	f.Var(&o.longest, "longest-transaction", "how long the longest transaction takes")
	software := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		list, err := advise.List()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var ids []string
		for _, s := range list {
			ids = append(ids, s.ID)
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("software", software); err != nil {
		panic(err) // the flag was added just now
	}
	return cmd
}

func (a *app) runAdvise(ctx context.Context, words []string, o adviseFlags) error {
	if len(words) > 0 && (o.software != "" || o.list || o.log != "") {
		return usage(errors.New("a FILTER selects connections, and --software, --list and --log look at none"))
	}
	if o.log != "" && o.software != "" && !keepsLog(o.software) {
		return usage(fmt.Errorf("--log is of firebird or interbase, not of %q", o.software))
	}
	base, err := keepalive.ProfileByName(adviseProfile)
	if err != nil {
		return err
	}
	policy, err := o.policy.policy(base.Policy)
	if err != nil {
		return usage(err)
	}
	if err := policy.ValidateFor("linux"); err != nil {
		return usage(err)
	}
	v := &advice{Policy: policy, Given: o.policy != policyFlags{}}
	switch {
	case o.list:
		list, err := advise.List()
		if err != nil {
			return err
		}
		return a.adviseList(list)
	case o.log != "":
		if v.Log, err = openLog(ctx, o.log, time.Duration(o.longest)); err != nil {
			return err
		}
		if o.software == "" {
			o.software = "firebird"
			if strings.Contains(strings.ToLower(filepath.Base(o.log)), "interbase") {
				o.software = "interbase"
			}
		}
		fallthrough
	case o.software != "":
		if o.longest != 0 && o.log == "" {
			return usage(errors.New("--longest-transaction is weighed with a log: give --log as well"))
		}
		s, err := advise.ByName(o.software)
		if err != nil {
			return usage(fmt.Errorf("--software: %w", err))
		}
		if v.Software, err = v.made(s); err != nil {
			return err
		}
		return a.showAdvice(v)
	}
	return a.survey(ctx, words, o, v)
}

// survey advises on the connections there are.
func (a *app) survey(ctx context.Context, words []string, o adviseFlags, v *advice) error {
	req, err := a.request(words)
	if err != nil {
		return err
	}
	report, err := advise.Survey(ctx, a.engine(), req, v.Policy, advise.Options{})
	if err != nil {
		return err
	}
	v.Report = report
	for i := range report.Programs {
		p := &report.Programs[i]
		if p.Software == nil || !keepsLog(p.Software.ID) {
			continue
		}
		for _, name := range advise.LogPlaces() {
			log, err := openLog(ctx, name, time.Duration(o.longest))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				a.say("%v", err)
				continue
			}
			v.Log = log
			made, err := v.made(*p.Software)
			if err != nil {
				return err
			}
			p.Advice = made.Advice
			break
		}
	}
	if o.longest != 0 && v.Log == nil {
		a.say("no log of Firebird or InterBase was found, so --longest-transaction had no part")
	}
	if err := a.showAdvice(v); err != nil {
		return err
	}
	return a.remark(&engine.Snapshot{Notes: report.Notes, How: report.How})
}

// keepsLog reports whether it is software with a log that tells of breaks.
func keepsLog(id string) bool {
	return strings.EqualFold(id, "firebird") || strings.EqualFold(id, "interbase")
}

// advice is all that is shown.
type advice struct {
	Policy   keepalive.Policy
	Given    bool // the policy is not the default one
	Software *entry
	Log      *logged
	Report   *advise.Report
}

// entry is one software, made out for a policy.
type entry struct {
	advise.Software
	advise.Advice
}

// logged is what a log says.
type logged struct {
	File    string
	Summary *advise.LogSummary
	Advice  advise.LogAdvice
}

func openLog(ctx context.Context, name string, longest time.Duration) (*logged, error) {
	l, err := advise.OpenLog(ctx, name)
	if err != nil {
		return nil, err
	}
	return &logged{name, l, l.Advise(longest)}, nil
}

// advised is the policy that was given, else the log's.
func (v *advice) advised() keepalive.Policy {
	if v.Log != nil && !v.Given {
		return v.Log.Advice.Policy
	}
	return v.Policy
}

// made makes an entry out for the policy that is advised.
func (v *advice) made(s advise.Software) (*entry, error) {
	a, err := s.Render(v.advised())
	if err != nil {
		return nil, err
	}
	return &entry{s, a}, nil
}

func (a *app) showAdvice(v *advice) error {
	if a.common.output == "json" {
		return a.adviseJSON(v)
	}
	return a.adviseText(v)
}
