package sockdiag

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// bytecodeFilters makes filters up, pushable ones or any.
type bytecodeFilters struct {
	rnd      *rand.Rand
	pushable bool
	cgroup   uint64
}

func (g *bytecodeFilters) pick(from ...string) string { return from[g.rnd.IntN(len(from))] }

func (g *bytecodeFilters) expr(depth int) string {
	if depth == 0 || g.rnd.IntN(5) == 0 {
		return g.predicate()
	}
	switch g.rnd.IntN(3) {
	case 0:
		return "not ( " + g.expr(depth-1) + " )"
	default:
		kids := make([]string, 2+g.rnd.IntN(2))
		for i := range kids {
			kids[i] = g.expr(depth - 1)
		}
		return "( " + strings.Join(kids, g.pick(" and ", " or ")) + " )"
	}
}

func (g *bytecodeFilters) predicate() string {
	port := func() string {
		return g.pick("80", "443", "5432", "4000", "4001", "0", "1", "65535", "32768", "9000")
	}
	kinds := []func() string{
		func() string {
			addr := g.pick("127.0.0.1", "127.0.0.0/8", "127.1.0.0/16", "127.0.0.4/30", "0.0.0.0/0", "10.0.0.0/8",
				"[::1]", "[::]/0", "[::]", "[::ffff:127.0.0.7]", "[::ffff:0.0.0.0/96]", "[::ffff:127.0.0.0/105]", "*", "0.0.0.0")
			// A port makes the wildcard a real condition.
			return g.pick("src", "dst") + g.pick(" = ", " != ", " ") + addr + ":" + port()
		},
		func() string {
			return g.pick("src", "dst") + g.pick(" = ", " != ") +
				g.pick("127.0.0.1", "127.0.0.0/8", "127.0.0.0/29", "0.0.0.0/0", "::1", "::/0", "::/1", "::ffff:127.0.0.8", "inet:*", "inet6:*")
		},
		func() string {
			return g.pick("sport", "dport") + " " + g.pick("=", "!=", "<", "<=", ">", ">=") + " " + port()
		},
		func() string { return "dev " + g.pick("=", "!=") + " " + g.pick("0", "1", "7") },
		func() string { return "family = " + g.pick("ipv4", "ipv6") },
		func() string {
			return "fwmark " + g.pick("=", "!=") + " " + g.pick("0", "0x11", "0x10/0xf0", "0x1/0x1", "0x12/0x3")
		},
	}
	if g.cgroup != 0 {
		kinds = append(kinds, func() string {
			return fmt.Sprintf("cgroup %s %d", g.pick("=", "!="), g.cgroup+uint64(g.rnd.IntN(2)))
		})
	}
	if !g.pushable {
		kinds = slices.Concat(kinds, []func() string{
			func() string { return "state " + g.pick("established", "listening", "time-wait", "big") },
			func() string { return g.pick("pid = 42", "comm = a*", "verdict = dead", "heard > 1m", "autobound") },
			func() string { return "cookie != 7" },
			func() string { return "src = *" },
		})
	}
	return kinds[g.rnd.IntN(len(kinds))]()
}
