package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/engine"
	"deadpeer/internal/picture"
	"deadpeer/internal/wire"
)

// What there is room for in a picture.
const (
	drawnConnections = 8
	drawnSteps       = 40 // of each, the newest
)

// tracePicture keeps what a trace tells, to be drawn when it ends.
type tracePicture struct {
	next    tracing // is told as well
	flows   map[endpoints]*tracedFlow
	order   []*tracedFlow
	leftOut map[endpoints]bool // for want of room
}

// tracedFlow is one side of a connection that probes or retransmits.
type tracedFlow struct {
	endpoints
	about   string // the prober's program and policy
	steps   []tracedStep
	dropped bool // the oldest steps
	// foreseen is what was to come of the first probe without an answer, and
	// foreseenAt when that was sent; nil when the peer answers.
	foreseen   *forecast.Forecast
	foreseenAt time.Time
}

// tracedStep is what happened at one moment.
type tracedStep struct {
	at       time.Time
	kind     wire.Kind
	n        int
	answered bool
	rtt      time.Duration
	byPeer   bool // of a reset
}

func newTracePicture(next tracing) *tracePicture {
	return &tracePicture{next: next, flows: map[endpoints]*tracedFlow{}, leftOut: map[endpoints]bool{}}
}

func (p *tracePicture) event(t *engine.Traced) error {
	p.keep(t)
	return p.next.event(t)
}

func (p *tracePicture) end() error { return p.next.end() }

func (p *tracePicture) keep(t *engine.Traced) {
	at := endpoints{t.Local, t.Peer}
	if f := p.flows[endpoints{t.Peer, t.Local}]; f != nil && t.Kind == wire.Reset {
		f.add(tracedStep{at: t.Time, kind: t.Kind, n: t.N, byPeer: true})
		return
	}
	f := p.flows[at]
	if f == nil {
		if len(p.order) == drawnConnections {
			if len(p.leftOut) < 1<<16 {
				p.leftOut[at] = true
			}
			return
		}
		f = &tracedFlow{endpoints: at}
		p.flows[at], p.order = f, append(p.order, f)
	}
	if f.about == "" && t.Socket != nil {
		f.about = t.Socket.Owner()
		if s := t.Socket.Settings; t.Socket.Known {
			f.about += ", " + policyText(forecast.Input{KeepAlive: s.KeepAlive, Policy: s.Policy})
		}
	}
	switch t.Kind {
	case wire.Probe, wire.WindowProbe, wire.Retransmission, wire.Reset, wire.GiveUp:
		f.add(tracedStep{at: t.Time, kind: t.Kind, n: t.N})
		if t.Kind == wire.Probe && f.foreseen == nil && t.Forecast.GivesUp {
			foreseen := t.Forecast
			f.foreseen, f.foreseenAt = &foreseen, t.Time
		}
	case wire.Answer:
		f.foreseen = nil
		for i := len(f.steps) - 1; i >= 0; i-- {
			if s := &f.steps[i]; s.at.Equal(t.Sent) || t.About == wire.Retransmission {
				s.answered, s.rtt = true, t.RTT
				break
			}
		}
	}
}

func (f *tracedFlow) add(s tracedStep) {
	if len(f.steps) == drawnSteps {
		f.steps, f.dropped = f.steps[1:], true
	}
	f.steps = append(f.steps, s)
}

// ended tells whether the last step is an end.
func (f *tracedFlow) ended() bool {
	if len(f.steps) == 0 {
		return false
	}
	k := f.steps[len(f.steps)-1].kind
	return k == wire.Reset || k == wire.GiveUp
}

// silentFrom is when the first of the last unanswered steps was.
func (f *tracedFlow) silentFrom() (at time.Time, ok bool) {
	for _, s := range f.steps {
		switch {
		case s.answered:
			ok = false
		case s.kind == wire.Reset && s.byPeer:
			return at, false
		case !ok && s.kind != wire.Reset && s.kind != wire.GiveUp:
			at, ok = s.at, true
		}
	}
	return at, ok
}

// draw makes a sequence diagram: what each side sent, the silence, the end;
// and below it in outline what was foreseen.
func (p *tracePicture) draw() picture.Picture {
	var start, end time.Time
	for _, f := range p.order {
		for _, s := range f.steps {
			if start.IsZero() || s.at.Before(start) {
				start = s.at
			}
			if s.at.After(end) {
				end = s.at
			}
		}
		if f.foreseen != nil {
			if f.foreseenAt.Before(start) { // its step is one of those dropped
				start = f.foreseenAt
			}
			if at := f.foreseenAt.Add(f.foreseen.Earliest); at.After(end) {
				end = at
			}
		}
	}
	pic := picture.Picture{
		Title: "Keepalive on the wire", Subtitle: "from " + start.Local().Format("2 January 2006 15:04:05"),
		Description: p.sentence(), Since: "the first packet drawn", ToScale: len(p.order) > 1, Legend: p.legend(),
	}
	if len(p.order) == 0 {
		pic.Subtitle, pic.Since = "nothing was seen", ""
		pic.Lanes = []picture.Lane{{Name: "the wire"}}
		return pic
	}
	for _, f := range p.order {
		p.drawFlow(&pic, f, start, end)
	}
	pic.Caption = p.notes()
	return pic
}

func (p *tracePicture) drawFlow(pic *picture.Picture, f *tracedFlow, start, end time.Time) {
	us := len(pic.Lanes)
	peer, plan := us+1, us+2
	pic.Lanes = append(pic.Lanes, picture.Lane{Name: shortAddr(f.local)}, picture.Lane{Name: shortAddr(f.peer)})
	for _, s := range f.steps {
		at := s.at.Sub(start)
		m := picture.Mark{Lane: us, Kind: picture.Question, Text: strconv.Itoa(s.n), Earliest: at, Latest: at, Answered: s.answered}
		switch s.kind {
		case wire.WindowProbe:
			m.Text = "W"
		case wire.Retransmission:
			m.Text = "D"
		case wire.Reset, wire.GiveUp:
			m.Kind, m.Text = picture.Failure, "R"
			if s.byPeer {
				m.Lane = peer
			} else if len(p.order) == 1 {
				m.Kind, m.Text = picture.End, "gives up after "+picture.Time(at)+": reset"
			}
		}
		pic.Marks = append(pic.Marks, m)
	}
	if from, ok := f.silentFrom(); ok {
		to := end
		if f.ended() {
			to = f.steps[len(f.steps)-1].at
		}
		pic.Spans = append(pic.Spans, picture.Span{Lane: peer, Kind: picture.Silence, From: from.Sub(start), To: to.Sub(start)})
	}
	if f.foreseen == nil {
		return
	}
	pic.Lanes = append(pic.Lanes, picture.Lane{Name: "forecast", Bare: true})
	from := f.foreseenAt.Sub(start)
	for _, s := range f.foreseen.Steps {
		pic.Marks = append(pic.Marks, picture.Mark{Lane: plan, Kind: picture.Question, Outline: true, Earliest: from + s.Earliest, Latest: from + s.Latest})
	}
	pic.Spans = append(pic.Spans, picture.Span{Lane: plan, Kind: picture.Rule, From: from, To: from + f.foreseen.Earliest})
}

// shortAddr fits beside a lane.
func shortAddr(a netip.AddrPort) string {
	const most, head, tail = 17, 7, 8
	if s := []rune(a.String()); len(s) > most {
		return string(s[:head]) + "…" + string(s[len(s)-tail:])
	}
	return a.String()
}

// legend names the marks that the picture has.
func (p *tracePicture) legend() (list []picture.Entry) {
	have := map[wire.Kind]bool{}
	foreseen := false
	for _, f := range p.order {
		foreseen = foreseen || f.foreseen != nil
		for _, s := range f.steps {
			have[s.kind] = true
		}
	}
	for _, e := range []struct {
		kind wire.Kind
		mark string
		text string
	}{{wire.Probe, "1", "probe"}, {wire.WindowProbe, "W", "window probe"}, {wire.Retransmission, "D", "data again"}} {
		if have[e.kind] {
			list = append(list, picture.Entry{Kind: picture.Question, Mark: e.mark, Text: e.text})
		}
	}
	if have[wire.Reset] || have[wire.GiveUp] && len(p.order) > 1 {
		list = append(list, picture.Entry{Kind: picture.Failure, Mark: "R", Text: "reset"})
	}
	if have[wire.GiveUp] && len(p.order) == 1 {
		list = append(list, picture.Entry{Kind: picture.End, Text: "given up"})
	}
	if foreseen {
		list = append(list, picture.Entry{Outline: true, Text: "foreseen at the first probe"})
	}
	return list
}

// sentence says in words what the picture shows.
func (p *tracePicture) sentence() string {
	probes, answered, ended := 0, 0, 0
	for _, f := range p.order {
		for _, s := range f.steps {
			switch s.kind {
			case wire.Probe, wire.WindowProbe:
				probes++
				if s.answered {
					answered++
				}
			}
		}
		if f.ended() {
			ended++
		}
	}
	return fmt.Sprintf("%s on %s: %d answered, %d not. %s ended by reset.",
		count(probes, "probe"), count(len(p.order), "connection"), answered, probes-answered, count(ended, "connection"))
}

// notes say what the picture leaves out, and whose the connections are.
func (p *tracePicture) notes() (list []string) {
	for _, f := range p.order {
		if f.about != "" {
			list = append(list, shortAddr(f.peer)+": "+f.about)
		}
		if f.foreseen != nil {
			list = append(list, fmt.Sprintf("%s: foreseen to be given up %s to %s after the first probe without an answer",
				shortAddr(f.peer), picture.Time(f.foreseen.Earliest), picture.Time(f.foreseen.Latest)))
		}
		if f.dropped {
			list = append(list, fmt.Sprintf("%s: only the last %d steps are drawn", shortAddr(f.peer), drawnSteps))
		}
	}
	if n := len(p.leftOut); n > 0 {
		list = append(list, fmt.Sprintf("%s more not drawn; a filter helps", count(n, "connection")))
	}
	return list
}

// page is the picture as a document, with every step in a table.
func (p *tracePicture) page() picture.Page {
	page := picture.Page{Picture: p.draw(), Lead: []string{p.sentence()}, Head: []string{"connection", "step", "at", "answer"}}
	page.Notes, page.Picture.Caption = page.Picture.Caption, nil // it is in the text
	for _, f := range p.order {
		for _, s := range f.steps {
			answer := "none"
			switch {
			case s.kind == wire.Reset || s.kind == wire.GiveUp:
				answer = ""
			case s.rtt > 0:
				answer = latency(s.rtt)
			case s.answered:
				answer = "yes"
			}
			page.Rows = append(page.Rows, []string{
				fmt.Sprintf("%v → %v", f.local, f.peer), s.words(), s.at.Local().Format("15:04:05.000"), answer,
			})
		}
	}
	return page
}

// words name a step.
func (s tracedStep) words() string {
	switch {
	case s.kind == wire.Probe:
		return fmt.Sprintf("probe %d", s.n)
	case s.kind == wire.WindowProbe:
		return fmt.Sprintf("window probe %d", s.n)
	case s.kind == wire.Retransmission:
		return fmt.Sprintf("retransmission %d", s.n)
	case s.kind == wire.GiveUp:
		return "gives up: reset"
	case s.byPeer:
		return "reset by the peer"
	}
	return "reset"
}
