package conn

import "slices"

// node is one node of a filter's expression: andNode, orNode, notNode, or a
// predicate.
type node interface{ match(s *Subject) Truth }

type (
	andNode []node // at least two, none of them an andNode
	orNode  []node // at least two, none of them an orNode
	notNode struct{ of node }
)

func (n andNode) match(s *Subject) Truth {
	t := Yes
	for _, kid := range n {
		if t = min(t, kid.match(s)); t == No {
			break
		}
	}
	return t
}

func (n orNode) match(s *Subject) Truth {
	t := No
	for _, kid := range n {
		if t = max(t, kid.match(s)); t == Yes {
			break
		}
	}
	return t
}

func (n notNode) match(s *Subject) Truth { return Yes - n.of.match(s) }

func newAnd(kids []node) node {
	var flat andNode
	for _, kid := range kids {
		if and, ok := kid.(andNode); ok {
			flat = append(flat, and...)
		} else {
			flat = append(flat, kid)
		}
	}
	if len(flat) == 1 {
		return flat[0]
	}
	return flat
}

func newOr(kids []node) node {
	var flat orNode
	for _, kid := range kids {
		if or, ok := kid.(orNode); ok {
			flat = append(flat, or...)
		} else {
			flat = append(flat, kid)
		}
	}
	if len(flat) == 1 {
		return flat[0]
	}
	return flat
}

func newNot(n node) node {
	if not, ok := n.(notNode); ok {
		return not.of
	}
	return notNode{n}
}

// junction looks at a node below an odd (not) or even number of negations,
// as De Morgan's laws have it: the kids of a conjunction or disjunction, or,
// for a predicate, nil. The kids stand under the negation returned.
func junction(n node, not bool) (kids []node, all, kidsNot bool) {
	switch n := n.(type) {
	case andNode:
		return n, !not, not
	case orNode:
		return n, not, not
	case notNode:
		return []node{n.of}, true, !not
	}
	return nil, false, not
}

func anyNode(n node, is func(node) bool) bool {
	if n == nil {
		return false
	}
	kids, _, _ := junction(n, false)
	for _, kid := range kids {
		if anyNode(kid, is) {
			return true
		}
	}
	return kids == nil && is(n)
}

func possibleStates(n node, not bool) States {
	kids, all, kidsNot := junction(n, not)
	if kids == nil {
		set, ok := n.(statePred)
		switch {
		case !ok:
			return AllStates
		case not:
			return AllStates &^ States(set)
		}
		return States(set)
	}
	if all {
		states := AllStates
		for _, kid := range kids {
			states &= possibleStates(kid, kidsNot)
		}
		return states
	}
	var states States
	for _, kid := range kids {
		states |= possibleStates(kid, kidsNot)
	}
	return states
}

// namedStates are the states the expression asks for by name.
func namedStates(n node, not bool) (states States) {
	kids, _, kidsNot := junction(n, not)
	for _, kid := range kids {
		states |= namedStates(kid, kidsNot)
	}
	if not {
		return states
	}
	switch n := n.(type) {
	case statePred:
		return States(n)
	case numPred:
		if n.field == fieldTimer && n.value == uint64(TimerTimeWait) {
			return 1 << TimeWait
		}
	}
	return states
}

// alwaysNames reports whether n can hold only where a predicate cookie = N
// names the connection.
func alwaysNames(n node, not bool) bool {
	kids, all, kidsNot := junction(n, not)
	if kids == nil {
		p, ok := n.(numPred)
		return ok && !not && p.field == fieldCookie && p.op == opEQ
	}
	for _, kid := range kids {
		if alwaysNames(kid, kidsNot) == all {
			return all
		}
	}
	return !all
}

// mayBe reports whether p stands anywhere in n, other than negated.
func mayBe(n node, not bool, p numPred) bool {
	kids, _, kidsNot := junction(n, not)
	if kids == nil {
		return !not && n == p
	}
	return slices.ContainsFunc(kids, func(kid node) bool { return mayBe(kid, kidsNot, p) })
}

func mustBe(n node, not bool, cookie uint64) bool {
	kids, all, kidsNot := junction(n, not)
	if kids == nil {
		return !not && n == numPred{field: fieldCookie, op: opEQ, value: cookie}
	}
	for _, kid := range kids {
		if mustBe(kid, kidsNot, cookie) == all {
			return all
		}
	}
	return !all
}
