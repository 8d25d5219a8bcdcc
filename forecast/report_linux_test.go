package forecast_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/forecast"
	"deadpeer/internal/jiffies"
)

var reportFile = flag.String("report", "", "write what was forecast and measured to this file")

// result is what came of a case.
type result struct {
	name     string
	forecast forecast.Forecast
	expected time.Duration // the one instant; 0 without the kernel's tick counter
	certain  bool          // it does not hang on a tick that we cannot know
	took     time.Duration
	unseen   time.Duration // before that, nobody looked
	died     bool
	errno    string
}

func (r result) error() time.Duration { return r.took - r.expected }

// describe notes what the kernel says of an idle connection, of which the
// pending timer was armed at a time that we cannot know.
func (s *stage) describe() {
	if !s.in.KeepAlive {
		return
	}
	zero, mono := s.zero, s.zeroMono
	in := s.live()
	s.found, s.foundAt = &in, s.zeroMono
	s.zero, s.zeroMono = zero, mono
}

// expected is the one instant of the end. What we do and the kernel's doing
// it may be a tick apart, and a living peer may answer faster than it used to:
// it is certain if that makes no difference.
func (s *stage) expected(situation forecast.Situation) (at time.Duration, certain bool) {
	if !s.counter.Known() {
		return 0, false
	}
	in, from := s.in, s.zeroMono
	if s.found != nil {
		in, from = *s.found, s.foundAt
	}
	tick := time.Second / time.Duration(in.HZ)
	trips := []time.Duration{in.RTT}
	if situation == forecast.SituationZeroWindowAlive || situation == forecast.SituationZeroWindow {
		trips = append(trips, 1)
	}
	var ends []time.Duration
	certain = true
	for _, late := range []time.Duration{0, tick} {
		for _, in.RTT = range trips {
			in.Clock = s.counter.At(from + late)
			f, err := forecast.For(situation, in)
			ok(s.t, err)
			ends = append(ends, f.Expected+late+from-s.zeroMono)
			certain = certain && f.Earliest == f.Latest
		}
	}
	// Without a timer of coarse buckets between, the tick is all of it.
	return ends[0], certain && slices.Max(ends)-slices.Min(ends) <= tick
}

// writeReport writes a line a case, and how good the forecasts were.
func writeReport(name string, results []result) error {
	slices.SortFunc(results, func(a, b result) int { return cmp.Compare(a.name, b.name) })
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	var b bytes.Buffer
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
	fmt.Fprintf(&b, "%-54s %9s %9s %9s %9s %9s  %s\n", "", "earliest", "latest", "expected", "measured", "error ms", "errno")
	var errors []time.Duration
	inside, sameErrno, ended, busy := 0, 0, 0, 0
	for _, r := range results {
		f := r.forecast
		same := "as forecast"
		if r.errno == f.Errno && r.died == f.GivesUp {
			sameErrno++
		} else {
			same = fmt.Sprintf("forecast %q", f.Errno)
		}
		if r.errno != "" {
			same = r.errno + ", " + same
		}
		if !r.died {
			fmt.Fprintf(&b, "%-54s %9s %9s %9s %9s %9s  %s\n", r.name, "never", "never", "never", "never", "", same)
			continue
		}
		ended++
		if tick := time.Second / time.Duration(jiffies.HZ()); r.took >= f.Earliest-tick && r.took-r.unseen <= f.Latest+tick {
			inside++
		}
		expected, off := "", ""
		if r.expected != 0 {
			expected, off = seconds(r.expected), fmt.Sprintf("%.1f", float64(r.error().Microseconds())/1000)
			switch {
			case !r.certain:
				expected += "?"
			case r.unseen > 12*ms:
				off += "~"
				busy++
			default:
				errors = append(errors, r.error().Abs())
			}
		}
		fmt.Fprintf(&b, "%-54s %9s %9s %9s %9s %9s  %s\n", r.name, seconds(f.Earliest), seconds(f.Latest), expected, seconds(r.took), off, same)
	}
	fmt.Fprintf(&b, "\nLinux %s, HZ=%d: %d cases; ended between earliest and latest, give or take the tick of the beginning: %d of %d; errno as forecast: %d\n",
		unix.ByteSliceToString(u.Release[:]), jiffies.HZ(), len(results), inside, ended, sameErrno)
	if slices.Sort(errors); len(errors) > 0 {
		fmt.Fprintf(&b, "error of the expected instant in %d cases: median %.1f ms, worst %.1f ms\n",
			len(errors), float64(errors[len(errors)/2].Microseconds())/1000, float64(errors[len(errors)-1].Microseconds())/1000)
		fmt.Fprintf(&b, "not counted: %d that this machine was too busy to look at in time (~), and those where a tick that nobody can know decides between two instants (?)\n", busy)
	} else {
		fmt.Fprintln(&b, "the kernel's tick counter cannot be read (needs root), so there is no expected instant")
	}
	return os.WriteFile(name, b.Bytes(), 0o644)
}
