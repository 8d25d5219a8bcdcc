package conn

// And is the filter that selects what both f and g do. The states f lets in
// stay; g, whose states were not written out, adds none.
func (f *Filter) And(g *Filter) *Filter {
	base := f.base
	if g.named {
		base &= g.base
	}
	if g.expr == nil {
		return &Filter{base: base, named: f.named || g.named, expr: f.expr}
	}
	if f.expr == nil {
		return &Filter{base: base, named: f.named || g.named, expr: g.expr}
	}
	return &Filter{base: base, named: f.named || g.named, expr: newAnd([]node{f.expr, g.expr})}
}

// Nearest is the candidate that word was probably meant to be, a slip or two
// away, or "".
func Nearest(word string, candidates []string) string { return nearest(word, candidates) }

// NamesOne reports whether the filter can match one connection only, because
// it names a cookie in every alternative.
func (f *Filter) NamesOne() bool {
	return anyNode(f.expr, func(n node) bool {
		p, ok := n.(numPred)
		return ok && p.field == fieldCookie && p.op == opEQ && mustBe(f.expr, false, p.value)
	})
}
