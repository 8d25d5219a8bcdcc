package picture

import (
	"fmt"
	"math"
)

// drawMarks draws what is uncertain first, so that it is behind, and labels
// last, where there is room.
func (c *canvas) drawMarks() {
	for _, m := range c.Marks {
		x1, x2 := c.axis.x(m.Earliest), c.axis.x(m.Latest)
		switch {
		case m.Kind == End:
			fmt.Fprintf(c, `<rect class="endband" x="%s" y="%s" width="%s" height="%s"/>`+"\n", n(x1), n(c.top+above), n(x2-x1), n(c.foot-c.top-above))
		case x2-x1 > 0.5:
			fmt.Fprintf(c, `<rect class="band" x="%s" y="%s" width="%s" height="%s" rx="%s"/>`+"\n",
				n(x1), n(c.lanes[m.Lane]-radius-4), n(x2-x1), n(2*radius+8), n(math.Min(4, (x2-x1)/2)))
		}
	}
	for _, m := range c.Marks {
		if m.Kind == End {
			c.drawMark(m)
		}
	}
	for _, m := range c.Marks {
		if m.Kind != End {
			c.drawMark(m)
		}
	}
	// The end, the first and the last are what people look for.
	var rest []Mark
	for _, m := range c.Marks {
		switch m.Kind {
		case End:
			c.labelMark(m)
		case Question:
			if !m.Outline {
				rest = append(rest, m)
			}
		}
	}
	for i := range rest {
		if i == 1 {
			c.labelMark(rest[len(rest)-1])
		}
		if i < max(1, len(rest)-1) {
			c.labelMark(rest[i])
		}
	}
}

func (c *canvas) drawMark(m Mark) {
	x, y := c.axis.x(m.Earliest), c.lanes[m.Lane]
	switch m.Kind {
	case Start:
		fmt.Fprintf(c, `<circle class="start" cx="%s" cy="%s" r="4"/>`+"\n", n(x), n(y))
	case Question:
		if m.Outline {
			fmt.Fprintf(c, `<circle class="outline" cx="%s" cy="%s" r="%s"/>`+"\n", n(x), n(y), n(radius-1))
			return
		}
		if to := m.Lane + 1; to < len(c.lanes) {
			below := c.lanes[to]
			if m.Answered {
				fmt.Fprintf(c, `<path class="ask" d="M%s %sL%s %sL%s %s"/>`, n(x), n(y+radius), n(x+3), n(below), n(x+6), n(y+radius))
			} else { // it goes half of the way
				mid := y + (below-y)*0.55
				fmt.Fprintf(c, `<path class="ask" d="M%s %sV%sm-3.5 -3.5l7 7m0 -7l-7 7"/>`, n(x), n(y+radius), n(mid))
			}
		}
		c.dot("dot", m, x, y)
	case Failure:
		c.dot("fail", m, x, y)
	case End:
		fmt.Fprintf(c, `<path class="over" d="M%s %sV%s"/>`, n(x), n(c.top+above), n(c.foot))
		fmt.Fprintf(c, `<path class="over" d="M%s %sl12 12m0 -12l-12 12"/>`+"\n", n(x-6), n(c.top+above-14))
	}
}

func (c *canvas) dot(class string, m Mark, x, y float64) {
	fmt.Fprintf(c, `<circle class="%s" cx="%s" cy="%s" r="%s"/>`, class, n(x), n(y), n(radius))
	text := "in"
	if len(m.Text) > 2 {
		text = "in less"
	}
	c.text(text, x, y+4, m.Text)
}

// bold is by how much bold text is wider.
const bold = 1.1

// labelMark writes the time of a mark, or the text of an end, where there is
// room.
func (c *canvas) labelMark(m Mark) {
	x, y := c.axis.x(m.Earliest), c.lanes[m.Lane]
	switch m.Kind {
	case End:
		// Over the lanes, and inside of the picture.
		half := bold*textWidth(m.Text, small)/2 + 10
		c.place("over mid", math.Min(math.Max(x, left+half), width-half), c.top+16, m.Text)
	default:
		c.place("mid quiet", x, y-radius-8, Time(m.Earliest))
	}
}

// place writes text around x, unless it would cover other text.
func (c *canvas) place(class string, x, y float64, s string) {
	half := textWidth(s, small) / 2
	b := box{x - half, y - 11, x + half, y + 4}
	for _, t := range c.taken {
		if b.x1 < t.x2+6 && t.x1 < b.x2+6 && b.y1 < t.y2 && t.y1 < b.y2 {
			return
		}
	}
	c.taken = append(c.taken, b)
	c.text(class, x, y, s)
}

// drawLegend says what the marks are, in one line.
func (c *canvas) drawLegend(y float64) {
	x := left
	for _, e := range c.Legend {
		switch {
		case e.Outline:
			fmt.Fprintf(c, `<circle class="outline" cx="%s" cy="%s" r="%s"/>`, n(x+radius), n(y-4), n(radius-1))
		case e.Band:
			fmt.Fprintf(c, `<rect class="band" x="%s" y="%s" width="20" height="16" rx="3"/>`, n(x), n(y-12))
		case e.Kind == Failure:
			c.dot("fail", Mark{Text: e.Mark}, x+radius, y-4)
		case e.Kind == End:
			fmt.Fprintf(c, `<path class="over" d="M%s %sl12 12m0 -12l-12 12"/>`, n(x+4), n(y-10))
		default:
			c.dot("dot", Mark{Text: e.Mark}, x+radius, y-4)
		}
		c.text("quiet", x+26, y, e.Text)
		x += 26 + textWidth(e.Text, small) + 22
	}
}
