package cli

import (
	"fmt"
	"math"
	"net/netip"
	"text/tabwriter"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/survey"
	"deadpeer/keepalive"
)

// surveyFound is the end of a survey.
type surveyFound struct {
	target string // printable
	addr   netip.AddrPort
	survey.Result
}

// forecast tells when a policy gives a vanished peer up on that path.
func (f surveyFound) forecast(p keepalive.Policy) (forecast.Forecast, error) {
	return forecast.For(forecast.SituationIdle, forecast.Input{KeepAlive: true, Policy: p, RTT: f.RTT, HZ: jiffies.HZ()})
}

// surveyBounds are the idle times that are known.
func surveyBounds(r survey.Result) (list []string) {
	if r.Alive > 0 {
		list = append(list, "alive at "+about(r.Alive))
	}
	if r.Gone > 0 {
		list = append(list, "gone at "+about(r.Gone))
	}
	return list
}

func (a *app) surveyTable(f surveyFound) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%v\t%s\n", f.addr, f.story())
	if f.Odd > 0 {
		fmt.Fprintf(w, "but\tone ended after %s already, for another reason than its idle time\n", about(f.Odd))
	}
	fmt.Fprintf(w, "seen\t%s answered, %d lost; round trip %s\n", count(f.Questions-f.Unanswered, "probe"), f.Unanswered, latency(f.RTT))
	p, ok := f.Recommend()
	if !ok {
		return w.Flush()
	}
	fmt.Fprintf(w, "policy\tidle %s, %d probes %s apart\n", seconds(p.Idle), p.Probes, seconds(p.Interval))
	if n, ok := f.Nearest(); ok {
		fmt.Fprintf(w, "profile\t%s is nearest: idle %s, %d probes %s apart\n", n.Name, seconds(n.Policy.Idle), n.Policy.Probes, seconds(n.Policy.Interval))
	}
	c, err := f.forecast(p)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "forecast\twith that policy a vanished peer is given up %s to %s after it was last heard, %s\n", about(c.Earliest), about(c.Latest), c.Errno)
	return w.Flush()
}

// story says in words how idle connections end.
func (f surveyFound) story() string {
	between := fmt.Sprintf("after %s to %s idle", about(f.Alive), about(f.Gone))
	switch f.How {
	case survey.Silent:
		return "forgotten " + between + ", silently: probes go unanswered"
	case survey.Reset:
		return "reset " + between
	case survey.Closed:
		return fmt.Sprintf("the server itself closes after %s; until then the path remembers", about(f.Gone))
	case survey.Disturbed:
		return fmt.Sprintf("not found out: the path remembers for %s, then the server sends something by itself", about(f.Alive))
	}
	return fmt.Sprintf("never forgotten within %s, as seen from this side", about(f.Alive))
}

type jsonSurvey struct {
	Target        string         `json:"target"`
	Address       string         `json:"address"`
	ForgetsAfter  *jsonForgets   `json:"forgets_after"`
	How           survey.Outcome `json:"how"`
	OddS          *float64       `json:"odd_s,omitempty"`
	Probes        int            `json:"probes"`
	Unanswered    int            `json:"unanswered"`
	Loss          float64        `json:"loss"`
	RTTUS         *int64         `json:"rtt_us"`
	Recommended   *jsonRecommend `json:"recommended"`
	Profile       *string        `json:"profile"`
	GivesUpAfterS *[2]float64    `json:"gives_up_after_s"`
}

type jsonForgets struct {
	AliveAtS float64 `json:"alive_at_s"`
	GoneAtS  float64 `json:"gone_at_s"`
}

type jsonRecommend struct {
	IdleS     float64 `json:"idle_s"`
	IntervalS float64 `json:"interval_s"`
	Probes    int     `json:"probes"`
}

func (a *app) surveyJSON(f surveyFound) error {
	j := jsonSurvey{
		Target: f.target, Address: f.addr.String(), How: f.How, Probes: f.Questions, Unanswered: f.Unanswered,
		Loss: math.Round(f.Loss()*1e4) / 1e4,
	}
	if f.Gone > 0 {
		j.ForgetsAfter = &jsonForgets{millis(f.Alive, time.Duration.Truncate), millis(f.Gone, time.Duration.Round)}
	}
	if f.Odd > 0 {
		j.OddS = new(millis(f.Odd, time.Duration.Truncate))
	}
	if f.RTT > 0 {
		j.RTTUS = new(f.RTT.Microseconds())
	}
	if p, ok := f.Recommend(); ok {
		c, err := f.forecast(p)
		if err != nil {
			return err
		}
		j.Recommended = &jsonRecommend{p.Idle.Seconds(), p.Interval.Seconds(), p.Probes}
		j.GivesUpAfterS = &[2]float64{millis(c.Earliest, time.Duration.Round), millis(c.Latest, time.Duration.Round)}
	}
	if n, ok := f.Nearest(); ok {
		j.Profile = &n.Name
	}
	enc := newEncoder(a.stdout)
	if a.common.output == "jsonl" {
		return enc.Encode(j)
	}
	return enc.Encode(struct {
		jsonHead
		Surveys []jsonSurvey `json:"surveys"`
	}{newJSONHead(time.Now()), []jsonSurvey{j}})
}

// millis is a time in seconds, to the millisecond.
func millis(d time.Duration, to func(time.Duration, time.Duration) time.Duration) float64 {
	return to(d, time.Millisecond).Seconds()
}
