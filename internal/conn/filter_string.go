package conn

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// How tightly the surroundings of a node bind.
const (
	looseOr = iota
	insideAnd
	insideNot
)

func appendNode(b []byte, n node, around int) []byte {
	switch n := n.(type) {
	case orNode:
		return appendJoined(b, n, " or ", insideAnd, around > looseOr)
	case andNode:
		return appendJoined(b, n, " and ", insideNot, around > insideAnd)
	case notNode:
		if text, ok := unequal(n.of); ok {
			return append(b, text...)
		}
		return appendNode(append(b, "not "...), n.of, insideNot)
	}
	return append(b, predText(n, "=")...)
}

func appendJoined(b []byte, kids []node, by string, inside int, parens bool) []byte {
	if parens {
		b = append(b, "( "...)
	}
	for i, kid := range kids {
		if i > 0 {
			b = append(b, by...)
		}
		b = appendNode(b, kid, inside)
	}
	if parens {
		b = append(b, " )"...)
	}
	return b
}

// unequal is the text of a negated predicate that has an operator for it.
func unequal(n node) (string, bool) {
	switch n := n.(type) {
	case hostPred, markPred, globPred:
		return predText(n, "!="), true
	case numPred:
		return predText(n, "!="), n.op == opEQ
	}
	return "", false
}

func predText(n node, equal string) string {
	switch n := n.(type) {
	case statePred:
		return string(appendStates(nil, States(n)))
	case hostPred:
		return hostText(n, equal)
	case markPred:
		return fmt.Sprintf("fwmark %s %#x/%#x", equal, n.value, n.mask)
	case globPred:
		return fields[n.field].name + " " + equal + " " + Quote(n.pattern)
	case numPred:
		if n.op != opEQ {
			equal = opText[n.op]
		}
		value := valueText(n.field, n.value)
		if n.name != "" {
			value = Quote(n.name)
		}
		return fields[n.field].name + " " + equal + " " + value
	case blindPred:
		return "blind"
	}
	return "autobound"
}

func hostText(p hostPred, equal string) string {
	word, addr, port := "src", "*", ""
	if p.peer {
		word = "dst"
	}
	if p.port >= 0 {
		port = ":" + strconv.Itoa(int(p.port))
	}
	if p.prefix.IsValid() {
		addr = p.prefix.String()
		if p.prefix.IsSingleIP() {
			addr = p.prefix.Addr().String()
		}
		if port != "" && p.prefix.Addr().Is6() {
			addr = "[" + addr + "]"
		}
	}
	return word + " " + equal + " " + addr + port
}

func valueText(f field, v uint64) string {
	switch f {
	case fieldVerdict:
		return Verdict(v).String()
	case fieldTimer:
		return Timer(v).String()
	case fieldFamily:
		return Family(v).String()
	case fieldHeard, fieldSent, fieldRTT:
		s := time.Duration(min(v, math.MaxInt64)).String()
		if t, ok := strings.CutSuffix(s, "m0s"); ok {
			s = t + "m"
		}
		if t, ok := strings.CutSuffix(s, "h0m"); ok {
			s = t + "h"
		}
		return s
	case fieldSport, fieldDport:
		return ":" + strconv.FormatUint(v, 10)
	}
	return strconv.FormatUint(v, 10)
}

// appendStates writes a set of states in the words of the language.
func appendStates(b []byte, set States) []byte {
	if set == 0 {
		return append(b, "exclude all"...)
	}
	for _, s := range stateNamed[singleStates:listedStates] {
		if s.set == set {
			return append(b, "state "+s.name...)
		}
	}
	for _, s := range stateNamed[:singleStates] {
		if set&s.set != 0 {
			if len(b) > 0 {
				b = append(b, ' ')
			}
			b = append(b, "state "+s.name...)
		}
	}
	return b
}

// leadingState is the state predicate the text of n starts with, if any.
func leadingState(n node) (set States, ok bool) {
	switch n := n.(type) {
	case andNode:
		return leadingState(n[0])
	case orNode:
		return leadingState(n[0])
	case statePred:
		return States(n), true
	}
	return 0, false
}
