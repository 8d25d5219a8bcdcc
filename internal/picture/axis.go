package picture

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// axis maps times to places. Between two knots it is linear.
type axis struct {
	knots  []time.Duration
	places []float64
	breaks []bool // of the space that follows a knot: cut out, not to scale
	bent   bool   // no two spaces have the same scale
}

// How far two marks that follow each other must be apart.
const (
	roomy = 26.0
	tight = 19.0
	cut   = 84.0 // the width of what is cut out
)

// newAxis makes an axis from left to right on which every one of the moments
// can be told from the next, if there is a way. A linear one is best. If some
// spaces are much longer than the others they are cut out. Where spaces grow
// and grow, as with backoff, longer ones get less room a second.
func newAxis(moments []time.Duration, end time.Duration, left, right float64) axis {
	knots := append([]time.Duration{0}, moments...)
	slices.Sort(knots)
	knots = slices.Compact(knots)
	if last := knots[len(knots)-1]; end <= last {
		end = last + max(1, last/50)
	}
	knots = append(knots, end)
	a := axis{knots: knots, breaks: make([]bool, len(knots)-1)}
	width := right - left
	gaps := make([]float64, len(knots)-1)
	for i := range gaps {
		gaps[i] = float64(knots[i+1] - knots[i])
	}
	if !a.spread(gaps, left, width, roomy) && !a.cutOut(gaps, left, width) {
		a.bent = true
		bent := make([]float64, len(gaps))
		for _, power := range []float64{0.7, 0.5, 0.35, 0.2, 0} {
			for i, g := range gaps {
				bent[i] = math.Pow(g, power)
			}
			if a.spread(bent, left, width, roomy) {
				break
			}
		}
	}
	return a
}

// spread gives the spaces room in proportion to their weights, and tells
// whether all but the last, which no mark follows, have enough.
func (a *axis) spread(weights []float64, left, width, enough float64) bool {
	var sum float64
	for i, w := range weights {
		if !a.breaks[i] {
			sum += w
		} else {
			width -= cut
		}
	}
	a.places = append(a.places[:0], left)
	fits := true
	for i, w := range weights {
		d := cut
		if !a.breaks[i] {
			d = w / sum * width
		}
		fits = fits && (d >= enough || i == len(weights)-1)
		left += d
		a.places = append(a.places, left)
	}
	return fits
}

// cutOut cuts spaces that are much longer than the usual one out, at most two.
func (a *axis) cutOut(gaps []float64, left, width float64) bool {
	usual := slices.Clone(gaps[:len(gaps)-1])
	slices.Sort(usual)
	long := 4 * usual[len(usual)/2]
	n := 0
	for i, g := range gaps[:len(gaps)-1] {
		if a.breaks[i] = g > long; a.breaks[i] {
			n++
		}
	}
	if n > 0 && n <= 2 && a.spread(gaps, left, width, tight) {
		return true
	}
	clear(a.breaks)
	return false
}

// x is the place of a moment.
func (a axis) x(t time.Duration) float64 {
	i, _ := slices.BinarySearch(a.knots, t)
	i = min(max(i, 1), len(a.knots)-1)
	from, to := a.knots[i-1], a.knots[i]
	return a.places[i-1] + (a.places[i]-a.places[i-1])*float64(min(t, to)-from)/float64(to-from)
}

// broken tells whether a moment is inside of what is cut out.
func (a axis) broken(t time.Duration) bool {
	for i, b := range a.breaks {
		if b && t > a.knots[i] && t < a.knots[i+1] {
			return true
		}
	}
	return false
}

// tick is a labelled moment.
type tick struct {
	at   time.Duration
	x    float64
	text string
}

// ticks are round moments, as many as there is room for. On a bent axis they
// are the usual round numbers, else the multiples of one step.
func (a axis) ticks() []tick {
	if a.bent {
		return a.among(roundTimes())
	}
	// Steps count from the end of what is cut out, before which there are none.
	var from time.Duration
	for i, b := range a.breaks {
		if b {
			from = a.knots[i+1]
		}
	}
	end := a.knots[len(a.knots)-1]
	for _, step := range roundTimes() {
		if n := (end - from) / step; n > 40 || step < time.Millisecond {
			continue
		}
		var candidates []time.Duration
		for t := (from + step - 1) / step * step; t <= end; t += step {
			if t > 0 {
				candidates = append(candidates, t)
			}
		}
		const few = 3
		if list := a.among(candidates); len(list) == len(candidates)+1 || len(candidates) <= few {
			return list
		}
	}
	return a.among(nil)
}

// among are the start, and those of the candidates that there is room for,
// the later ones first.
func (a axis) among(candidates []time.Duration) []tick {
	const between = 22.0
	list := []tick{{0, a.x(0), "0"}}
	for _, t := range slices.Backward(candidates) {
		at := tick{t, a.x(t), Time(t)}
		room := t <= a.knots[len(a.knots)-1] && !a.broken(t)
		for _, other := range list {
			room = room && math.Abs(other.x-at.x) >= (textWidth(other.text, small)+textWidth(at.text, small))/2+between
		}
		if room {
			list = append(list, at)
		}
	}
	slices.SortFunc(list, func(a, b tick) int { return cmp.Compare(a.at, b.at) })
	return list
}

// roundTimes are the usual round times, the shortest first.
func roundTimes() (list []time.Duration) {
	for unit := time.Millisecond; unit < 10*time.Second; unit *= 10 {
		list = append(list, unit, 2*unit, 5*unit)
	}
	list = append(list, 10*time.Second, 20*time.Second, 30*time.Second)
	for _, n := range []time.Duration{1, 2, 5, 10, 20, 30} {
		list = append(list, n*time.Minute)
	}
	for n := time.Duration(1); n < 1<<20; n *= 2 {
		list = append(list, n*time.Hour)
	}
	return list
}

// Time is a time for people: "250 ms", "81.3 s", "2 h 11 m 15 s", "9 d 4 h".
func Time(d time.Duration) string {
	const day = 24 * time.Hour
	d = d.Round(time.Millisecond)
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	units := func(units ...time.Duration) string {
		var parts []string
		d := d.Round(units[len(units)-1])
		for _, u := range units {
			if n := d / u; n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n, map[time.Duration]string{day: "d", time.Hour: "h", time.Minute: "m", time.Second: "s"}[u]))
			}
			d %= u
		}
		return strings.Join(parts, " ")
	}
	switch {
	case d < 0:
		return "−" + Time(-d)
	case d == 0:
		return "0"
	case d < time.Second:
		return number(float64(d)/float64(time.Millisecond)) + " ms"
	case d < 10*time.Second:
		return number(d.Round(10*time.Millisecond).Seconds()) + " s"
	case d < 3*time.Minute:
		return number(d.Round(100*time.Millisecond).Seconds()) + " s"
	case d < time.Hour:
		return units(time.Minute, time.Second)
	case d < 10*time.Hour:
		return units(time.Hour, time.Minute, time.Second)
	case d < 2*day:
		return units(time.Hour, time.Minute)
	}
	return units(day, time.Hour)
}
