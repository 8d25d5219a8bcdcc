package advise

import (
	"fmt"
	"strings"
	"time"

	"deadpeer/keepalive"
)

// What Ovchinnikov's article on keepalive for InterBase and Firebird (2005)
// recommends at least, in both its texts.
const (
	leastIdle     = time.Minute
	leastInterval = 10 * time.Second
	leastProbes   = 5
)

// fewErrors and manyErrors, a day, part quiet logs from busy ones. The article
// gives the direction and the least values; these two numbers are ours.
const (
	fewErrors  = 1
	manyErrors = 10
)

// LogAdvice is the policy that a log calls for.
type LogAdvice struct {
	Policy  keepalive.Policy
	PerDay  float64  // resets, timeouts and NetBEUI errors
	Reasons []string // the rule, with the numbers put in
}

// Advise derives a policy from the errors of a log and the longest transaction
// there is (0: not known):
//
//	errors a day     idle     probes
//	fewer than 1     15 min   5, 10 s apart
//	1 to 10           5 min   5, 10 s apart
//	10 and more       1 min   7, 15 s apart
//
// and the idle time is never below the longest transaction.
//
// The more connections hang, the shorter the idle time: so says the Russian
// text of the article. Its English text has it the other way round ("increase
// the KEEPALIVE_TIME value"). That is a slip: an idle time that is longer
// begins the probes later, as the sentence before it says, and leaves a phantom
// with its locks for longer. Many errors also tell of bad lines, for which both
// texts want more probes, further apart, so that a client that comes back is
// still connected; 7 and 15 s are the article's own for long transactions.
//
// The longest transaction counts as the article weighs it: probes to a client
// that waits for its query are traffic for nothing. They do no harm, since its
// kernel answers them; whoever needs locks back sooner may go below.
//
// 104 and 10054 are not timeouts of keepalive: they say that the client, or a
// box on the path, sent a RST. They count as a sign of connections that break.
func (l *LogSummary) Advise(longest time.Duration) LogAdvice {
	total := l.Total().sum()
	days := max(1, l.Span().Hours()/24)
	a := LogAdvice{PerDay: float64(total) / days}
	p := keepalive.Policy{Idle: 15 * time.Minute, Interval: leastInterval, Probes: leastProbes, UserTimeout: -1}
	switch {
	case a.PerDay >= manyErrors:
		p.Idle, p.Interval, p.Probes = leastIdle, 15*time.Second, 7
		a.Reasons = append(a.Reasons, fmt.Sprintf("%.3g broken connections a day (%d or more): idle as short as sensible, and more probes for bad lines", a.PerDay, manyErrors))
	case a.PerDay >= fewErrors:
		p.Idle = 5 * time.Minute
		a.Reasons = append(a.Reasons, fmt.Sprintf("%.3g broken connections a day (%d to %d): a short idle time", a.PerDay, fewErrors, manyErrors))
	default:
		a.Reasons = append(a.Reasons, fmt.Sprintf("%.2g broken connections a day (fewer than %d): no hurry", a.PerDay, fewErrors))
	}
	const most = 32767 * time.Second // TCP_KEEPIDLE, tcp(7)
	switch longest = min(longest, most); {
	case longest <= 0:
		a.Reasons = append(a.Reasons, "longest transaction not known (--longest-transaction): not considered")
	case longest > p.Idle:
		p.Idle = (longest + time.Second - 1).Truncate(time.Second)
		a.Reasons = append(a.Reasons, fmt.Sprintf("longest transaction %s: idle not below it, to spare the line; its locks are held that long by a phantom", short(longest)))
	default:
		a.Reasons = append(a.Reasons, fmt.Sprintf("longest transaction %s: no longer than the idle time anyway", short(longest)))
	}
	a.Policy = p
	return a
}

// short leaves zero minutes and seconds out.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
