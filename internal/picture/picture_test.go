package picture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

//go:generate go test . -run TestGolden -update

var update = flag.Bool("update", false, "rewrite the expected pictures")

const s = time.Second

// question is a probe at some time, with an eighth of a second to be late.
func question(n int, at time.Duration) Mark {
	return Mark{Kind: Question, Text: fmt.Sprint(n), Earliest: at, Latest: at + s/8}
}

// vanished is a picture of questions without answers, and the end.
func vanished(end time.Duration, at ...time.Duration) Picture {
	p := Picture{
		Title: "Vanished", Subtitle: "a policy", Description: "what it shows", Since: "the write",
		Lanes: []Lane{{Name: "this host"}, {Name: "the peer", Note: "is gone"}, {Name: "the kernel", Bare: true}},
		Marks: []Mark{{Kind: Start}},
	}
	for i, t := range at {
		p.Marks = append(p.Marks, question(i+1, t))
	}
	p.Marks = append(p.Marks, Mark{Kind: End, Text: "given up", Earliest: end, Latest: end + s})
	p.Spans = []Span{{Lane: 1, Kind: Silence, To: end}, {Lane: 2, Kind: Rule, Text: "a rule", To: end}}
	return p
}

func golden() map[string]Picture {
	linear := vanished(10*s, 4*s, 6*s, 8*s)
	linear.Lanes = append(linear.Lanes, Lane{Name: "older texts", Bare: true})
	linear.Spans = append(linear.Spans, Span{Lane: 3, Kind: Myth, Text: "a myth", To: 12 * s})
	linear.Legend = []Entry{{Kind: Question, Mark: "1", Text: "probe"}, {Kind: Failure, Mark: "N", Text: "failure"}, {Kind: End, Text: "given up"}, {Band: true, Text: "uncertain"}}
	linear.Caption = []string{"A caption."}
	never := Picture{Title: "Never", Lanes: []Lane{{Name: "this host"}, {Name: "the peer"}, {Name: "the kernel", Bare: true}}}
	never.Marks = []Mark{{Kind: Start}, {Kind: Question, Text: "1", Earliest: s, Latest: s, Answered: true}, {Lane: 1, Kind: Failure, Text: "N", Earliest: 2 * s, Latest: 2 * s}}
	never.Spans = []Span{{Lane: 2, Kind: ForEver, Text: "never", To: 2 * s}}
	foreseen := vanished(7*s, s, 3*s)
	foreseen.ToScale = true
	foreseen.Marks = append(foreseen.Marks, Mark{Lane: 2, Kind: Question, Outline: true, Earliest: 3 * s, Latest: 3*s + s/4})
	foreseen.Legend = []Entry{{Outline: true, Text: "foreseen"}}
	return map[string]Picture{
		"linear": linear, "foreseen": foreseen,
		"broken": vanished(2*time.Hour+10*time.Minute, 2*time.Hour, 2*time.Hour+3*time.Minute, 2*time.Hour+6*time.Minute),
		"bent":   vanished(300*s, s/5, 3*s/5, 7*s/5, 3*s, 6*s, 12*s, 25*s, 51*s, 102*s, 205*s),
		"never":  never,
	}
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is another picture now; look at it after go generate", file)
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, p := range golden() {
		var b bytes.Buffer
		if err := p.SVG(&b); err != nil {
			t.Fatal(err)
		}
		compare(t, name+".svg", b.Bytes())
	}
	var b bytes.Buffer
	page := Page{Picture: golden()["linear"], Lead: []string{"Lead."}, Head: []string{"step", "at"}, Rows: [][]string{{"probe 1", "4 s"}}, Notes: []string{"Note."}}
	if err := page.HTML(&b); err != nil {
		t.Fatal(err)
	}
	compare(t, "page.html", b.Bytes())
}

// What the axis says of itself is so.
func TestScale(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"linear": "Time since the write. ", "broken": "axis is broken", "bent": "the less room", "never": ""} {
		c := canvas{Picture: golden()[name]}
		c.layOut()
		if got := c.scale(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// On every axis time runs to the right, marks can be told apart and no label
// covers another.
func TestAxis(t *testing.T) {
	t.Parallel()
	for name, moments := range map[string][]time.Duration{
		"nothing": nil, "one": {s}, "at once": {1, 2, 3}, "backoff": {s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 248 * s},
		"regular": {10 * s, 20 * s, 30 * s}, "idle": {7200 * s, 7275 * s, 7350 * s}, "days": {240 * time.Hour, 241 * time.Hour}, "twice": {s, 1000 * s, 1001 * s, 2000 * s},
	} {
		a := newAxis(moments, 0, left, right)
		at := left
		for i, m := range moments {
			if x := a.x(m); x < at+tight-0.01 && i > 0 || x > right {
				t.Errorf("%s: %v at %.1f, the one before at %.1f", name, m, x, at)
			} else {
				at = x
			}
		}
		end := math.Inf(-1)
		for _, tick := range a.ticks() {
			half := textWidth(tick.text, small) / 2
			if tick.x-half < end || tick.x > right+0.01 {
				t.Errorf("%s: tick %s covers the one before", name, tick.text)
			}
			end = tick.x + half
		}
		if len(moments) > 2 && moments[0] > 3 && len(a.ticks()) < 3 {
			t.Errorf("%s: ticks %v", name, a.ticks())
		}
	}
}

// Hostile text stays text, in SVG and in HTML.
func TestHostileText(t *testing.T) {
	t.Parallel()
	const hostile = "</text></title><script>alert(1)</script>\x00\x1b[2J\u202e&\"'"
	p := golden()["linear"]
	p.Title, p.Subtitle, p.Description, p.Since = hostile, hostile, hostile, hostile
	p.Lanes[0].Name, p.Lanes[0].Note, p.Marks[1].Text, p.Spans[1].Text, p.Legend[0].Text, p.Caption[0] = hostile, hostile, hostile, hostile, hostile, hostile
	p.Marks[len(p.Marks)-1].Text, p.Legend[0].Mark = hostile, hostile
	var svg, html bytes.Buffer
	if err := errors.Join(p.SVG(&svg), Page{Picture: p, Lead: []string{hostile}, Head: []string{hostile}, Rows: [][]string{{hostile}}, Notes: []string{hostile}}.HTML(&html)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"svg": svg.String(), "html": html.String()} {
		if strings.Contains(text, "<script") || strings.ContainsAny(text, "\x00\x1b\u202e") {
			t.Errorf("%s: hostile text came through", name)
		}
	}
	d := xml.NewDecoder(&svg)
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("svg: %v", err)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriteError(t *testing.T) {
	t.Parallel()
	p := golden()["linear"]
	if err := p.SVG(broken{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if err := (Page{Picture: p}).HTML(broken{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0", 204 * time.Millisecond: "204 ms", 1234 * time.Millisecond: "1.23 s", 83248 * time.Millisecond: "83.2 s", 3 * time.Minute: "3 m",
		7875 * s: "2 h 11 m 15 s", 13 * time.Hour: "13 h", 50 * time.Hour: "2 d 2 h", -s: "−1 s",
	} {
		if got := Time(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
