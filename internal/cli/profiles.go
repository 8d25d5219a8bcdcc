package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/keepalive"
)

func (a *app) profiles() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "profiles",
		Short: "List the keepalive policies for common paths, with their detection times",
		Long: `profiles lists keepalive policies by name: where each fits, how long after its
last segment an idle connection whose peer is gone is given up by the kernel's
rule (idle + probes times interval), the older rule of thumb (one interval
more), and how many probes an hour a thousand idle, living connections cost.`,
		Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			if output == "json" {
				return a.profileJSON()
			}
			return a.profileTable()
		},
	}
	addOutput(cmd, &output, "table", "json")
	return cmd
}

func (a *app) profileTable() error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tIDLE\tINTERVAL\tPROBES\tGIVES UP AFTER\tRULE OF THUMB\tPROBES/H\tFITS")
	span := func(d time.Duration) string { return string(appendSpan(nil, d)) }
	for _, p := range keepalive.Profiles() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%d\t%s\n", p.Name, span(p.Policy.Idle), span(p.Policy.Interval), p.Policy.Probes,
			span(p.DetectionTime()), span(p.ArticleBound()), p.ProbesPerHour(), p.Fits)
	}
	return w.Flush()
}

func (a *app) profileJSON() error {
	type profile struct {
		Name          string   `json:"name"`
		Fits          string   `json:"fits"`
		IdleS         float64  `json:"idle_s"`
		IntervalS     float64  `json:"interval_s"`
		Probes        int      `json:"probes"`
		DetectionS    float64  `json:"detection_s"`
		ArticleBoundS float64  `json:"article_bound_s"`
		ProbesPerHour int      `json:"probes_per_hour_per_1000"`
		ForgetsS      *float64 `json:"path_forgets_s"`
	}
	out := struct {
		Schema   int       `json:"schema"`
		Profiles []profile `json:"profiles"`
	}{Schema: 1}
	for _, p := range keepalive.Profiles() {
		j := profile{
			Name: p.Name, Fits: p.Fits, IdleS: p.Policy.Idle.Seconds(), IntervalS: p.Policy.Interval.Seconds(), Probes: p.Policy.Probes,
			DetectionS: p.DetectionTime().Seconds(), ArticleBoundS: p.ArticleBound().Seconds(), ProbesPerHour: p.ProbesPerHour(),
		}
		if p.Forgets > 0 {
			j.ForgetsS = new(p.Forgets.Seconds())
		}
		out.Profiles = append(out.Profiles, j)
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(out)
}
