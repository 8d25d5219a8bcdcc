// Package picture draws timelines: what happens on some lanes, one under the
// other, over one axis of time. It writes SVG and HTML that stand alone: no
// scripts, no fonts or files from elsewhere, light and dark as the reader has
// it, and a title and description for those who do not see it. The same
// picture gives the same bytes. Pure; any OS.
//
//	p := picture.Picture{Title: "idle", Lanes: []picture.Lane{{Name: "this host"}}}
//	p.Marks = append(p.Marks, picture.Mark{Kind: picture.Question, Text: "1", Earliest: 30 * time.Second, Latest: 32 * time.Second})
//	err := p.SVG(os.Stdout)
//
// Text may come from outside: it is made printable and escaped.
package picture

import "time"

// Picture is what is drawn.
type Picture struct {
	Title       string
	Subtitle    string
	Description string // what it shows, in words, for those who do not see it
	Since       string // what times count from: "the write"
	ToScale     bool   // one scale throughout, though marks may cover each other
	Lanes       []Lane
	Marks       []Mark
	Spans       []Span
	Legend      []Entry
	Caption     []string // lines under it
}

// Lane is a horizontal line on which things happen.
type Lane struct {
	Name string
	Note string // under the name
	Bare bool   // no line: it holds spans only
}

// Kind is what a mark or a span is.
type Kind uint8

// The kinds of marks.
const (
	Start    Kind = iota // what times count from
	Question             // a segment that wants an answer; the lane below is the one asked
	Failure              // something on the way fails
	End                  // the connection is given up: a line through all lanes
)

// The kinds of spans.
const (
	Silence Kind = iota + 16 // nothing comes
	Rule                     // a time that a rule takes
	Myth                     // a time that a rule was thought to take, dashed, with a line through all lanes at its end
	ForEver                  // it goes on beyond the picture
)

// Mark is something at one moment, which is known to lie between two.
type Mark struct {
	Lane             int
	Kind             Kind
	Text             string // short, in the mark; of an End beside it
	Earliest, Latest time.Duration
	Answered         bool // of a Question: the lane below answers
	Outline          bool // of a Question: foreseen, not put
}

// Span is something that lasts.
type Span struct {
	Lane     int
	Kind     Kind
	Text     string
	From, To time.Duration
}

// Entry says in the legend what something in the picture is.
type Entry struct {
	Kind    Kind
	Mark    string // what is in the mark
	Outline bool   // a mark that is foreseen
	Band    bool   // the soft band between Earliest and Latest, not a mark
	Text    string
}
