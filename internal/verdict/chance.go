package verdict

import "math"

// Fail is what the questions of this run to living connections over the same
// interface and next hop tell of the path.
type Fail struct {
	Controls   int // living connections that were asked
	Questions  int // questions to them
	Unanswered int // of those, left without an answer
}

// Chance is f, the chance that a question to a living peer stays unanswered:
// the upper end of the 95 % confidence interval over at least MinControls
// living connections. With fewer it is AssumedFailChance, or the rate seen
// where that is worse.
func (f Fail) Chance() float64 {
	if f.Controls >= MinControls {
		return upperBound(f.Questions, f.Unanswered)
	}
	if f.Questions == 0 {
		return AssumedFailChance
	}
	return max(AssumedFailChance, float64(f.Unanswered)/float64(f.Questions))
}

// Measured reports whether Chance is a measurement.
func (f Fail) Measured() bool { return f.Controls >= MinControls }

// Needed is how many unanswered questions a proof of death takes, at most
// 1000: a path that loses nearly everything proves nothing.
func (f Fail) Needed() int {
	const most = 1000
	c := f.Chance()
	k := math.Ceil(math.Log(MaxFalseChance)/math.Log(c) - 1e-9)
	if c >= 1 || k >= most {
		return most
	}
	return max(MinQuestions, int(k))
}

func (f Fail) chanceOf(unanswered int) float64 {
	return math.Pow(f.Chance(), float64(unanswered))
}

// upperBound is the upper limit of the one-sided 95 % confidence interval of
// a proportion (Clopper and Pearson 1934): the p at which k or fewer failures
// in n trials have a chance of 5 %. When k is large the sum is replaced by
// Wilson's score bound with continuity correction (Newcombe 1998), which lies
// within a fraction of a percent of it there.
func upperBound(n, k int) float64 {
	if n <= 0 || k >= n {
		return 1
	}
	if k == 0 {
		return 1 - math.Pow(0.05, 1/float64(n))
	}
	if k > 200 {
		return wilson(n, k)
	}
	low, high := float64(k)/float64(n), 1.0
	for range 60 {
		mid := (low + high) / 2
		if cumulative(n, k, mid) > 0.05 {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// cumulative is the binomial probability of at most k of n at p.
func cumulative(n, k int, p float64) float64 {
	if p >= 1 {
		return 0
	}
	logTerm := float64(n) * math.Log1p(-p)
	odds := math.Log(p) - math.Log1p(-p)
	sum := math.Exp(logTerm)
	for i := 1; i <= k; i++ {
		logTerm += math.Log(float64(n-i+1)) - math.Log(float64(i)) + odds
		sum += math.Exp(logTerm)
	}
	return sum
}

func wilson(n, k int) float64 {
	const z = 1.6448536269514722 // one-sided 95 %
	nf, p := float64(n), (float64(k)+0.5)/float64(n)
	centre := p + z*z/(2*nf)
	spread := z * math.Sqrt(p*(1-p)/nf+z*z/(4*nf*nf))
	return min(1, (centre+spread)/(1+z*z/nf))
}
