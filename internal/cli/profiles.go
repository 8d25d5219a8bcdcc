package cli

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

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
	w := bufio.NewWriter(a.stdout)
	head := []string{"NAME", "IDLE", "INTERVAL", "PROBES", "GIVES UP IN", "RULE OF THUMB", "PROBES/H", "FITS"}
	var lines [][]string
	limit := columnsOf(a.stdout)
	for _, p := range keepalive.Profiles() {
		if indent := len(further) - 1; limit > 0 && indent+len(p.Fits) > limit {
			p.Fits = strings.ReplaceAll(wrap(p.Fits, indent), "\n", further)
		}
		lines = append(lines, []string{p.Name, span(p.Policy.Idle), span(p.Policy.Interval), fmt.Sprint(p.Policy.Probes),
			span(p.DetectionTime()), span(p.ArticleBound()), fmt.Sprint(p.ProbesPerHour()), p.Fits})
	}
	return errors.Join(writeGrid(w, limit, head, lines), w.Flush())
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
	return newEncoder(a.stdout).Encode(out)
}
