//go:build report

package survey_test

import (
	"testing"
	"time"

	"deadpeer/internal/survey"
	"deadpeer/internal/testnet"
)

// TestReport surveys NATs that remember for 20, 47 and 90 s, and says what
// each took: make survey-report.
func TestReport(t *testing.T) {
	for _, truth := range []time.Duration{20 * time.Second, 47 * time.Second, 90 * time.Second} {
		for how, forgotten := range map[survey.Outcome]testnet.OnForgotten{survey.Silent: testnet.Drop, survey.Reset: testnet.Reset} {
			t.Run(truth.String()+" "+string(how), func(t *testing.T) {
				t.Parallel()
				p := newPath(t, &testnet.NATOptions{Established: truth, OnForgotten: forgotten}, idle)
				o, start := p.options(), time.Now()
				o.Max, o.Resolution, o.Connections = 2*time.Minute, 2*time.Second, 8
				r, err := survey.Run(t.Context(), o)
				ok(t, err)
				took := time.Since(start)
				within(t, o, r, took, how, truth)
				plan, err := o.Plan()
				ok(t, err)
				t.Logf("alive at %v, gone at %v; %d passes, took %v, bound %v and of the ladder alone %v", r.Alive, r.Gone, plan.Passes,
					took.Round(time.Second), plan.Bound(truth), time.Duration(plan.Passes)*(truth+plan.Rung))
			})
		}
	}
}
