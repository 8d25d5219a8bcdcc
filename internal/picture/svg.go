package picture

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"time"

	"deadpeer/internal/conn"
)

// The measures of a picture, in the units of its viewBox.
const (
	width  = 960.0
	left   = 132.0 // the names of the lanes end here
	right  = width - 36
	large  = 17.0 // sizes of text
	small  = 12.0
	radius = 10.0
	lane   = 62.0
	bare   = 34.0
	above  = 38.0 // the lanes, for what is written there
)

// canvas is a picture being drawn.
type canvas struct {
	bytes.Buffer
	Picture
	axis  axis
	lanes []float64 // their heights
	top   float64
	foot  float64 // where the axis is
	taken []box   // by text
}

type box struct{ x1, y1, x2, y2 float64 }

// SVG writes the picture as one SVG element, which is a document of its own,
// and can be put into HTML.
func (p Picture) SVG(w io.Writer) error { return p.svg(w, p.Title) }

// svg writes the picture under another name: what surrounds it may show its
// title already.
func (p Picture) svg(w io.Writer, name string) error {
	c := canvas{Picture: p, top: 24}
	c.layOut()
	c.draw(name)
	if _, err := w.Write(c.Bytes()); err != nil {
		return fmt.Errorf("write picture: %w", err)
	}
	return nil
}

// layOut finds out where the lanes and the moments are.
func (c *canvas) layOut() {
	if c.Title != "" {
		c.top += 26
	}
	if c.Subtitle != "" {
		c.top += 20
	}
	y := c.top + above
	for _, l := range c.Lanes {
		height := lane
		if l.Bare {
			height = bare
		}
		c.lanes = append(c.lanes, y+height/2)
		y += height
	}
	c.foot = y + 6
	var moments []time.Duration
	var end time.Duration
	for _, m := range c.Marks {
		if !m.Outline && !c.ToScale {
			moments = append(moments, m.Earliest)
		}
		end = max(end, m.Latest)
	}
	for _, s := range c.Spans {
		end = max(end, s.To)
	}
	c.axis = newAxis(merge(moments, end), end+end/60, left, right)
}

// merge leaves out moments that are as good as the same: they need no space
// between them.
func merge(moments []time.Duration, end time.Duration) (apart []time.Duration) {
	slices.Sort(moments)
	for _, m := range moments {
		if n := len(apart); m > 0 && (n == 0 || m-apart[n-1] > min(apart[n-1]/50, end/100)) {
			apart = append(apart, m)
		}
	}
	return apart
}

func (c *canvas) draw(name string) {
	height := c.foot + 44 + 18*float64(len(c.Caption))
	if len(c.Legend) > 0 {
		height += 24
	}
	if c.scale() != "" {
		height += 18
	}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" class="dp" viewBox="0 0 %s %s" role="img" aria-labelledby="dp-title dp-desc">`+"\n", n(width), n(height))
	fmt.Fprintf(c, "<title id=\"dp-title\">%s</title>\n<desc id=\"dp-desc\">%s</desc>\n<style>%s</style>\n", escape(name), escape(c.Description), style)
	fmt.Fprintf(c, `<rect class="ground" width="%s" height="%s"/>`+"\n", n(width), n(height))
	if c.Title != "" {
		c.text("title", 24, 40, c.Title)
	}
	if c.Subtitle != "" {
		c.text("quiet", 24, 62, c.Subtitle)
	}
	c.drawAxis()
	for i, l := range c.Lanes {
		if !l.Bare {
			fmt.Fprintf(c, `<path class="lane" d="M%s %sH%s"/>`+"\n", n(left), n(c.lanes[i]), n(right))
		}
		y := c.lanes[i] + 4
		if l.Note != "" {
			c.text("quiet end", left-16, y+9, l.Note)
			y -= 7
		}
		c.text("end", left-16, y, l.Name)
	}
	for _, s := range c.Spans {
		c.drawSpan(s)
	}
	c.drawMarks()
	y := c.foot + 50
	if len(c.Legend) > 0 {
		c.drawLegend(y)
		y += 24
	}
	if note := c.scale(); note != "" {
		c.text("quiet", left, y, note)
		y += 18
	}
	for _, line := range c.Caption {
		c.text("", left, y, line)
		y += 18
	}
	c.WriteString("</svg>\n")
}

// scale says what the axis shows, and where it is not to scale.
func (c *canvas) scale() (text string) {
	if c.Since != "" {
		text = "Time since " + c.Since + ". "
	}
	switch {
	case c.axis.bent:
		return text + "Not to scale: the longer a space, the less room it has a second."
	case slices.Contains(c.axis.breaks, true):
		return text + "Not to scale where the axis is broken."
	}
	return text
}

func (c *canvas) drawAxis() {
	a := c.axis
	y := c.foot
	fmt.Fprintf(c, `<path class="axis" d="M%s %sH%s"/>`+"\n", n(left), n(y), n(right))
	for _, t := range a.ticks() {
		fmt.Fprintf(c, `<path class="grid" d="M%s %sV%s"/><path class="axis" d="M%s %sv5"/>`, n(t.x), n(c.top+above), n(y), n(t.x), n(y))
		c.text("tick", t.x, y+20, t.text)
	}
	for i, b := range a.breaks {
		if b {
			x := (a.places[i] + a.places[i+1]) / 2
			fmt.Fprintf(c, `<path class="ground" d="M%s %sh12v12h-12z"/><path class="axis" d="M%s %sl4 -12M%s %sl4 -12"/>`+"\n",
				n(x-6), n(y-6), n(x-6), n(y+6), n(x+2), n(y+6))
		}
	}
}

func (c *canvas) drawSpan(s Span) {
	y, x1, x2 := c.lanes[s.Lane], c.axis.x(s.From), c.axis.x(s.To)
	switch s.Kind {
	case Silence:
		fmt.Fprintf(c, `<path class="hide" d="M%s %sH%s"/><path class="silence" d="M%s %sH%s"/>`+"\n", n(x1), n(y), n(right+1), n(x1), n(y), n(x2))
		return
	case Rule:
		fmt.Fprintf(c, `<path class="rule" d="M%s %sH%sM%s %sv10M%s %sv10"/>`+"\n", n(x1), n(y), n(x2), n(x1), n(y-5), n(x2), n(y-5))
	case Myth:
		fmt.Fprintf(c, `<path class="myth" d="M%s %sH%sM%s %sv10"/><path class="myth" d="M%s %sV%s"/>`+"\n",
			n(x1), n(y), n(x2), n(x1), n(y-5), n(x2), n(c.lanes[0]-radius-4), n(c.foot))
	case ForEver:
		fmt.Fprintf(c, `<path class="rule" d="M%s %sH%sm-8 -5l8 5l-8 5"/>`+"\n", n(x1), n(y), n(right))
	}
	c.text("", x1+8, y-8, s.Text)
}

func (c *canvas) text(class string, x, y float64, s string) {
	fmt.Fprintf(c, `<text class="%s" x="%s" y="%s">%s</text>`+"\n", class, n(x), n(y), escape(s))
}

// n is a number in as few digits as a picture needs.
func n(f float64) string {
	s := fmt.Sprintf("%.1f", f)
	if s == "-0.0" {
		return "0"
	}
	return string(bytes.TrimSuffix([]byte(s), []byte(".0")))
}

// textWidth is about how wide text is, rather too wide.
func textWidth(s string, size float64) float64 {
	var w float64
	for _, r := range s {
		switch {
		case r == ' ' || r == '.' || r == ',' || r == 'i' || r == 'l' || r == ':':
			w += 0.32
		case r == 'm' || r == 'w' || r >= 'A' && r <= 'Z':
			w += 0.78
		case r > 0x2e80:
			w++
		default:
			w += 0.58
		}
	}
	return w * size
}

// escape makes text from anywhere safe to show in XML and HTML.
func escape(s string) string {
	var b bytes.Buffer
	if err := xml.EscapeText(&b, []byte(conn.Printable(s))); err != nil {
		panic(err) // a buffer takes everything
	}
	return b.String()
}

const style = `
.dp{--ground:#fff;--ink:#1c2024;--quiet:#5b6470;--faint:#e4e7eb;--blue:#0b62c4;--red:#c02626;--amber:#8a5a00;font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){.dp{--ground:#14171b;--ink:#e8eaed;--quiet:#9aa4b0;--faint:#2a3037;--blue:#6db3ff;--red:#ff7a70;--amber:#e0b050}}
@media print{.dp{--ground:#fff;--ink:#000;--quiet:#444;--faint:#ddd;--blue:#0b62c4;--red:#c02626;--amber:#8a5a00}}
.dp text{fill:var(--ink);stroke:var(--ground);stroke-width:4px;stroke-linejoin:round;paint-order:stroke}.dp .quiet,.dp .tick{fill:var(--quiet)}.dp .end{text-anchor:end}.dp .tick,.dp .mid{text-anchor:middle}
.dp .title{font-size:17px;font-weight:600}.dp .ground{fill:var(--ground)}
.dp path{fill:none;stroke-width:1.5}.dp path.ground{fill:var(--ground);stroke:none}
.dp .lane,.dp .axis{stroke:var(--quiet);stroke-width:1.2}.dp .grid{stroke:var(--faint);stroke-width:1}
.dp .hide{stroke:var(--ground);stroke-width:3}.dp .silence{stroke:var(--quiet);stroke-dasharray:1 5}
.dp .rule{stroke:var(--ink)}.dp .myth{stroke:var(--amber);stroke-dasharray:5 4}
.dp .band{fill:var(--blue);opacity:.2}.dp .endband{fill:var(--red);opacity:.18}
.dp .ask{stroke:var(--blue)}.dp .dot{fill:var(--blue)}.dp text.in{fill:var(--ground);stroke:none;text-anchor:middle;font-size:11px;font-weight:600}.dp text.less{font-size:9px}
.dp .over{stroke:var(--red);stroke-width:2}.dp text.over{fill:var(--red);stroke:var(--ground);stroke-width:4px;font-weight:600}
.dp .outline{fill:none;stroke:var(--blue);stroke-dasharray:3 2}.dp .start{fill:var(--ink)}.dp .fail{fill:var(--amber)}
`
