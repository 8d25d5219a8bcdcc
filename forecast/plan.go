package forecast

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"deadpeer/keepalive"
)

// Goal is what a policy is to achieve.
type Goal struct {
	// Within is when an idle peer that vanished has been given up at the
	// latest, lateness of timers included.
	Within time.Duration
	// Loss is the chance that a segment is lost, 0 to below 1, the same each
	// way and independent of the others.
	Loss float64
	// FalseKill is the chance that is accepted that one cycle of probes to a
	// living peer kills the connection; 0 means one in a million. There is one
	// cycle for every idle time that the connection is silent.
	FalseKill float64
	// HZ is the kernel's CONFIG_HZ; 0 means any of 100, 250, 300 and 1000.
	HZ int
}

// MinProbes is the least number of probes that [Plan] gives: losses come in
// bursts, whatever their rate.
const MinProbes = 3

// Plan gives a policy that meets the goal, or an [*InputError] if none does.
// It has as many probes as the goal needs, spends about half of the time on
// them and the other half on the idle time before. It has no user timeout,
// which would make the number of probes void.
func Plan(g Goal) (keepalive.Policy, error) {
	p, err := g.plan()
	if err != nil {
		return keepalive.Policy{}, fmt.Errorf("plan policy: %w", err)
	}
	return p, nil
}

func (g Goal) plan() (keepalive.Policy, error) {
	if g.FalseKill == 0 {
		g.FalseKill = 1e-6
	}
	probes := MinProbes
	switch {
	case !(g.Loss >= 0 && g.Loss < 1): // so written that NaN is refused
		return keepalive.Policy{}, &InputError{"loss", fmt.Sprint(g.Loss), "0 to below 1", "give the share of segments lost one way"}
	case !(g.FalseKill > 0 && g.FalseKill < 1):
		return keepalive.Policy{}, &InputError{"false kill", fmt.Sprint(g.FalseKill), "above 0 to below 1", "give a chance, or 0 for one in a million"}
	case g.HZ != 0 && (g.HZ < minHZ || g.HZ > maxHZ):
		return keepalive.Policy{}, &InputError{"hz", strconv.Itoa(g.HZ), fmt.Sprintf("%d to %d", minHZ, maxHZ), "give the kernel's CONFIG_HZ, or 0 for any"}
	case g.Loss > 0:
		const most = 127 // MAX_TCP_KEEPCNT
		n := math.Ceil(math.Log(g.FalseKill) / math.Log(probeFails(g.Loss)))
		if !(n >= 0 && n <= most) { // no number at all where the loss is all but certain
			return keepalive.Policy{}, &InputError{"false kill", fmt.Sprint(g.FalseKill),
				fmt.Sprintf("%.2g to below 1 with a loss of %v", math.Pow(probeFails(g.Loss), most), g.Loss), "accept a greater one"}
		}
		probes = max(probes, int(n))
	}
	const most = 32767 * time.Second // MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL
	least := keepalive.Policy{Idle: time.Second, Interval: time.Second, Probes: probes}
	if soonest := g.latest(least); g.Within < soonest || g.Within > most {
		return keepalive.Policy{}, &InputError{"within", g.Within.String(), span{soonest, most}.String() + fmt.Sprintf(" with %d probes", probes),
			"give a time in that range, or accept a greater chance of a false kill"}
	}
	p := keepalive.Policy{Probes: probes, Interval: max(time.Second, (g.Within / time.Duration(2*probes)).Truncate(time.Second))}
	for ; p.Interval >= time.Second; p.Interval -= time.Second {
		p.Idle = (g.Within - time.Duration(probes)*p.Interval).Truncate(time.Second)
		for p.Idle >= time.Second {
			late := g.latest(p) - g.Within
			if late <= 0 {
				return p, nil
			}
			p.Idle -= roundUp(late, time.Second)
		}
	}
	return least, nil // lateness grows by leaps, and a step above passed it by
}

func (g Goal) latest(p keepalive.Policy) (latest time.Duration) {
	for _, hz := range g.rates() {
		f := unheard(SituationIdle, Input{KeepAlive: true, Policy: p, HZ: hz})
		latest = max(latest, f.Latest)
	}
	return latest
}

func (g Goal) rates() []int {
	if g.HZ != 0 {
		return []int{g.HZ}
	}
	return []int{100, 250, 300, 1000}
}

// probeFails is the chance that a probe to a living peer stays unanswered:
// it or its answer is lost.
func probeFails(loss float64) float64 { return 1 - (1-loss)*(1-loss) }

// FalseKill is the chance that one cycle of probes to a living peer kills the
// connection, when segments are lost with the chance loss each way,
// independently. With a user timeout the probes that count are those before
// the first expiry that can reach it, at any HZ.
func FalseKill(p keepalive.Policy, loss float64) float64 {
	p = clampPolicy(p)
	probes := int64(p.Probes)
	if p.UserTimeout > 0 {
		probes = math.MaxInt64
		for _, hz := range (Goal{}).rates() {
			w := wheel{hz}
			for armed := range level(w.ticks(p.Idle)) + 1 {
				c := chain{w, w.ticks(p.Idle), armed, w.ticks(p.Interval)}
				probes = min(probes, c.search(w.ticks(p.UserTimeout), func(t ticks) int64 { return t.hi })-1)
			}
		}
	}
	return math.Pow(probeFails(min(max(loss, 0), 1)), float64(probes))
}
