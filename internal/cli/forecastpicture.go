package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/picture"
)

// writeFile writes to a file, or to stdout for "-".
func (a *app) writeFile(name string, write func(io.Writer) error) error {
	if name == "-" {
		return write(a.stdout)
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		_ = f.Close() // the other error says more
		return err
	}
	return f.Close()
}

// forecastPage is a forecast as a document: in words, as a picture, and step
// by step.
func forecastPage(f forecast.Forecast, in forecast.Input) picture.Page {
	page := picture.Page{
		Picture: forecastPicture(f, in),
		Lead:    []string{forecastSentence(f, in), "With " + settingsText(f, in) + "."},
		Head:    []string{"step", "not before", "at the latest"},
		Notes:   []string{precision(f)},
	}
	page.Picture.Caption = nil // it is in the text
	if f.ArticleBound > 0 {
		page.Lead = append(page.Lead, articleText(f))
	}
	for _, s := range f.Steps {
		page.Rows = append(page.Rows, []string{fmt.Sprintf("%s %d", s.What, s.N), seconds(s.Earliest), seconds(s.Latest)})
	}
	if f.GivesUp {
		page.Rows = append(page.Rows, []string{"given up", seconds(f.Earliest), seconds(f.Latest)})
	}
	return page
}

// forecastPicture shows what this host sends, what comes of it, the kernel's
// rule, and below that the one of older texts.
func forecastPicture(f forecast.Forecast, in forecast.Input) picture.Picture {
	const us, peer, rule, myth = 0, 1, 2, 3 // lanes
	words := situationWords(f.Situation)
	p := picture.Picture{
		Title: words.title, Subtitle: settingsText(f, in), Description: forecastSentence(f, in), Since: words.start,
		Lanes: []picture.Lane{{Name: "this host"}, {Name: "the peer", Note: words.peer}, {Name: "the kernel", Bare: true}},
		Marks: []picture.Mark{{Kind: picture.Start}},
	}
	end := max(f.Latest, 1)
	const most, ends = 20, 6 // of more steps the first and the last are drawn, so that they can be told apart
	for i, s := range f.Steps {
		end = max(end, s.Latest)
		if len(f.Steps) > most && i >= ends && i < len(f.Steps)-ends {
			continue
		}
		m := picture.Mark{Lane: us, Kind: picture.Question, Text: strconv.Itoa(s.N), Earliest: s.Earliest, Latest: s.Latest, Answered: words.answers}
		switch s.What {
		case forecast.TailLossProbe:
			m.Text = "T"
		case forecast.NeighbourFails:
			m.Lane, m.Kind, m.Text = peer, picture.Failure, "N"
		}
		p.Marks = append(p.Marks, m)
	}
	if n := len(f.Steps); n > most {
		p.Caption = append(p.Caption, fmt.Sprintf("%d steps between the first and the last are not drawn.", n-2*ends))
	}
	if !words.answers {
		p.Spans = append(p.Spans, picture.Span{Lane: peer, Kind: picture.Silence, To: end})
	}
	if f.GivesUp {
		text := "given up after " + picture.Time(f.Earliest)
		if to := picture.Time(f.Latest); "given up after "+to != text {
			text += " to " + to
		}
		if f.Errno != "" {
			text += ", " + f.Errno
		}
		p.Marks = append(p.Marks, picture.Mark{Lane: us, Kind: picture.End, Text: text, Earliest: f.Earliest, Latest: f.Latest})
		p.Spans = append(p.Spans, picture.Span{Lane: rule, Kind: picture.Rule, Text: ruleText(f, in), To: f.Earliest})
	} else {
		p.Spans = append(p.Spans, picture.Span{Lane: rule, Kind: picture.ForEver, Text: "never gives it up", To: end})
	}
	if f.ArticleBound > 0 {
		p.Lanes = append(p.Lanes, picture.Lane{Name: "older texts", Bare: true})
		p.Spans = append(p.Spans, picture.Span{Lane: myth, Kind: picture.Myth, To: f.ArticleBound,
			Text: fmt.Sprintf("idle + (probes + 1) × interval = %s", seconds(f.ArticleBound))})
		p.Caption = append(p.Caption, articleText(f))
	}
	p.Legend = legend(f)
	p.Caption = append(p.Caption, precision(f))
	return p
}

// settingsText is what decides in the situation.
func settingsText(f forecast.Forecast, in forecast.Input) string {
	switch f.Situation {
	case forecast.SituationIdle, forecast.SituationCloseWait, forecast.SituationRebooted:
		return policyText(in)
	}
	text := "a usual round trip"
	if in.RTT > 0 {
		text = "a round trip of " + picture.Time(in.RTT)
	}
	if in.RTO > 0 {
		text += ", a timeout of " + picture.Time(in.RTO)
	}
	if in.Policy.UserTimeout > 0 {
		return text + ", a user timeout of " + picture.Time(in.Policy.UserTimeout)
	}
	return text + ", no user timeout"
}

// legend names the marks that the picture has.
func legend(f forecast.Forecast) (list []picture.Entry) {
	seen := map[string]bool{}
	for _, s := range f.Steps {
		if seen[s.What] {
			continue
		}
		seen[s.What] = true
		e := picture.Entry{Kind: picture.Question, Mark: "1", Text: s.What}
		switch s.What {
		case forecast.TailLossProbe:
			e.Mark = "T"
		case forecast.NeighbourFails:
			e.Kind, e.Mark = picture.Failure, "N"
		}
		list = append(list, e)
	}
	if f.GivesUp {
		list = append(list, picture.Entry{Kind: picture.End, Text: "given up"})
	}
	for _, s := range f.Steps {
		if s.Latest > s.Earliest {
			return append(list, picture.Entry{Band: true, Text: "from the earliest to the latest moment"})
		}
	}
	if f.Latest > f.Earliest {
		list = append(list, picture.Entry{Band: true, Text: "from the earliest to the latest moment"})
	}
	return list
}

// forecastSentence says the outcome and its rule.
func forecastSentence(f forecast.Forecast, in forecast.Input) string {
	words := situationWords(f.Situation)
	if !f.GivesUp {
		return "The kernel never gives the connection up: it stays for ever."
	}
	text := fmt.Sprintf("The kernel gives the connection up %s after %s. Rule %s: %s.", stepTime(f.Earliest, f.Latest), words.start, f.Rule, ruleText(f, in))
	if f.Errno == "" {
		return text + " Nobody is told: no program holds the connection."
	}
	return text + " The program gets " + f.Errno + "."
}

// ruleText is what the rule counts.
func ruleText(f forecast.Forecast, in forecast.Input) string {
	p := in.Policy
	probing := f.Situation == forecast.SituationZeroWindow || f.Situation == forecast.SituationZeroWindowAlive
	switch f.Rule {
	case forecast.KeepAlive:
		return fmt.Sprintf("idle + probes × interval = %s, and the lateness of timers", seconds(forecast.DetectionTime(p)))
	case forecast.UserTimeout:
		switch {
		case f.ArticleBound > 0:
			return fmt.Sprintf("the first probe time from the user timeout of %s on", seconds(p.UserTimeout))
		case probing:
			return fmt.Sprintf("the first window probe + the user timeout of %s", seconds(p.UserTimeout))
		case f.Situation == forecast.SituationSynSent:
			return fmt.Sprintf("the user timeout of %s", seconds(p.UserTimeout))
		}
		return fmt.Sprintf("the first retransmission + the user timeout of %s", seconds(p.UserTimeout))
	case forecast.Retries:
		if probing {
			return fmt.Sprintf("tcp_retries2: more than %d window probes in vain", or(in.Retries2, 15))
		}
		return fmt.Sprintf("tcp_retries2: the time that %d retransmissions would take from 200 ms on", or(in.Retries2, 15))
	case forecast.OrphanRetries:
		return fmt.Sprintf("tcp_orphan_retries: %d, for a connection that nobody holds", or(in.OrphanRetries, 8))
	case forecast.SYNRetries:
		return fmt.Sprintf("tcp_syn_retries: %d, and the linear ones before", or(in.SYNRetries, 6))
	case forecast.SYNACKRetries:
		return fmt.Sprintf("tcp_synack_retries: %d", or(in.SYNRetries, 5))
	case forecast.FinTimeout:
		return fmt.Sprintf("tcp_fin_timeout of %s", seconds(cmp.Or(in.FinTimeout, time.Minute)))
	case forecast.Reset:
		return "the first probe draws a RST from a peer that knows nothing of the connection"
	case forecast.NoNeighbour:
		return "the next hop does not answer"
	}
	return string(f.Rule)
}

// or is a number of an Input: 0 is the default, and negative is 0.
func or(n, usual int) int {
	if n == 0 {
		return usual
	}
	return max(0, n)
}

func articleText(f forecast.Forecast) string {
	return fmt.Sprintf("Older texts say %s. The kernel does not wait for another interval after the one that follows the last probe.", seconds(f.ArticleBound))
}

func precision(f forecast.Forecast) string {
	if f.Documented {
		return "By that system's documents, not measured."
	}
	return fmt.Sprintf("Linux with HZ=%d: timers may be late by up to an eighth, never early.", f.HZ)
}

// words say a situation to people.
type words struct {
	title   string
	start   string // what times count from
	peer    string // what the peer does
	answers bool   // each time
}

func situationWords(s forecast.Situation) words {
	const gone, write = "is gone", "the write"
	const heard = "the last segment received"
	w, known := map[forecast.Situation]words{
		forecast.SituationIdle:            {"An idle connection whose peer vanished", heard, gone, false},
		forecast.SituationInFlight:        {"Data in flight to a peer that vanished", write, gone, false},
		forecast.SituationZeroWindow:      {"A shut window, and then the peer vanished", "the vanishing of the peer", gone, false},
		forecast.SituationZeroWindowAlive: {"A living peer that keeps its window shut", "the shutting of the window", "opens no window", true},
		forecast.SituationSynSent:         {"Connecting to somebody who does not answer", "the first SYN", gone, false},
		forecast.SituationSynReceived:     {"Accepting a connection whose peer vanished", "the first SYN-ACK", gone, false},
		forecast.SituationFinWait1:        {"Our FIN to a peer that vanished", "the FIN", gone, false},
		forecast.SituationFinWait2:        {"Waiting for a FIN that never comes", "the acknowledgement of our FIN", gone, false},
		forecast.SituationCloseWait:       {"The peer closed, then vanished", heard, gone, false},
		forecast.SituationLastAck:         {"Both closed, and the peer vanished", "our FIN", gone, false},
		forecast.SituationRebooted:        {"An idle connection whose peer rebooted", heard, "has forgotten it", true},
		forecast.SituationMidProbeWrite:   {"A write while keepalive is probing", write, gone, false},
		forecast.SituationARPFailing:      {"Data for a next hop that does not answer", write, "is not reached", false},
	}[s]
	if !known {
		return words{title: string(s), start: "now"}
	}
	return w
}
