package heartbeat

import (
	"math/bits"
	"time"
)

// latencyBuckets: the first is for answers under 32 µs, each further one for
// twice the time of the one before, the last for all from 8.4 s on.
const latencyBuckets = 20

// Latency is how long a target took to answer. It is a histogram of times that
// double from 32 µs to 8.4 s, which favours the latest tens of thousands of
// answers: all counts are halved before one overflows.
type Latency struct {
	counts [latencyBuckets]uint16
	last   time.Duration
}

// Last is the latest answer's, 0 before the first.
func (l Latency) Last() time.Duration { return l.last }

// Quantile is the time within which the part q of the answers came, exact to
// a factor of two. It is 0 before the first answer.
func (l Latency) Quantile(q float64) time.Duration {
	total := 0
	for _, n := range l.counts {
		total += int(n)
	}
	rank := q * float64(total)
	seen := 0.0
	for i, n := range l.counts {
		if seen += float64(n); n > 0 && seen >= rank {
			return 32 * time.Microsecond << i
		}
	}
	return 0
}

func (l *Latency) add(d time.Duration) {
	l.last = d
	i := min(bits.Len64(uint64(max(d, 0)/(32*time.Microsecond))), latencyBuckets-1)
	if l.counts[i]++; l.counts[i] == 1<<16-1 {
		for j := range l.counts {
			l.counts[j] /= 2
		}
	}
}
