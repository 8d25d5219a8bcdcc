package verdict

import (
	"math"
	"testing"
)

// Values of the exact one-sided 95 % bound: k = 0 from its closed form, the
// others summed in exact arithmetic.
func TestUpperBound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		n, k int
		want float64
	}{
		{0, 0, 1}, {-1, 0, 1}, {5, 5, 1}, {5, 9, 1},
		{1, 0, 0.95}, {20, 0, 0.139108}, {100, 0, 0.0295130}, {300, 0, 0.00993607}, {100_000, 0, 2.99568e-5},
		{10, 1, 0.394163}, {20, 1, 0.216106}, {20, 10, 0.698046}, {100, 10, 0.163718}, {1000, 100, 0.116992}, {1000, 300, 0.324754},
	} {
		if got := upperBound(tt.n, tt.k); math.Abs(got-tt.want) > 5e-4*math.Max(tt.want, 0.01) {
			t.Errorf("%d of %d: %.6g, want %.6g", tt.k, tt.n, got, tt.want)
		}
	}
}

// The bound is one: with that chance, so few failures are a matter of 5 %. It
// grows with the failures, also where the approximation takes over.
func TestUpperBoundHolds(t *testing.T) {
	t.Parallel()
	for _, n := range []int{20, 100, 250, 1000, 100_000} {
		last := 0.0
		for k := 0; k < n; k = k + 1 + k/50 {
			p := upperBound(n, k)
			if !(p > last) || p > 1 || p <= float64(k)/float64(n) && k < n-1 {
				t.Fatalf("%d of %d: %v, after %v", k, n, p, last)
			}
			last = p
			if c := cumulative(n, k, p); k <= 200 && math.Abs(c-0.05) > 1e-6 || k > 200 && k < n*4/5 && math.Abs(c-0.05) > 0.003 {
				t.Errorf("%d of %d: bound %v has a chance of %v", k, n, p, c)
			}
		}
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		f        Fail
		chance   float64
		needed   int
		measured bool
	}{
		{Fail{}, 0.1, 6, false},
		{Fail{Controls: 19, Questions: 1000}, 0.1, 6, false},
		{Fail{Controls: 5, Questions: 10, Unanswered: 5}, 0.5, 20, false},
		{Fail{Controls: 5, Questions: 10, Unanswered: 10}, 1, 1000, false},
		{Fail{Controls: 20, Questions: 20}, 0.139108, 8, true},
		{Fail{Controls: 100, Questions: 100}, 0.0295130, 4, true},
		{Fail{Controls: 300, Questions: 300}, 0.00993607, 3, true},
		{Fail{Controls: 100_000, Questions: 100_000}, 2.99568e-5, 3, true},
		{Fail{Controls: 20, Questions: 40, Unanswered: 40}, 1, 1000, true},
		{Fail{Controls: 20}, 1, 1000, true},
	} {
		if c := tt.f.Chance(); math.Abs(c-tt.chance) > 1e-4*tt.chance || tt.f.Measured() != tt.measured {
			t.Errorf("%+v: chance %v, want %v", tt.f, c, tt.chance)
		}
		k := tt.f.Needed()
		if k != tt.needed {
			t.Errorf("%+v: %d needed, want %d", tt.f, k, tt.needed)
		}
		// It is the least number that proves it.
		if p := tt.f.chanceOf(k); tt.chance < 1 && (p > MaxFalseChance*(1+1e-6) || k > MinQuestions && tt.f.chanceOf(k-1) <= MaxFalseChance) {
			t.Errorf("%+v: %d questions have the chance %v", tt.f, k, p)
		}
	}
}

// However unlucky, a path that answers nobody proves nothing.
func FuzzFail(f *testing.F) {
	f.Add(20, 100, 10)
	f.Add(0, 0, 0)
	f.Add(1000, 1<<40, 1<<39)
	f.Fuzz(func(t *testing.T, controls, questions, unanswered int) {
		fail := Fail{Controls: controls, Questions: questions, Unanswered: unanswered}
		if controls < 0 || questions < 0 || unanswered < 0 || unanswered > questions {
			return
		}
		c, k := fail.Chance(), fail.Needed()
		if !(c > 0 && c <= 1) || k < MinQuestions || k > 1000 {
			t.Errorf("%+v: chance %v, %d needed", fail, c, k)
		}
		if questions > 0 && c < float64(unanswered)/float64(questions) {
			t.Errorf("%+v: chance %v is below what was seen", fail, c)
		}
	})
}
