package conn

import (
	"fmt"
	"slices"
	"strings"
)

// parser is a recursive-descent parser over the tokens of one filter.
type parser struct {
	resolver Resolver
	input    string
	end      int // column after the last character
	tokens   []token
	pos      int
	depth    int
}

func (p *parser) errorAt(column int, format string, args ...any) *FilterError {
	return &FilterError{Input: p.input, Column: column, Msg: fmt.Sprintf(format, args...)}
}

// peek is the next token; at the end one without text, one past the input.
func (p *parser) peek() token {
	if p.pos < len(p.tokens) {
		return p.tokens[p.pos]
	}
	return token{column: p.end}
}

func (p *parser) atEnd() bool { return p.pos >= len(p.tokens) }

// accept takes the next token when it is one of the keywords.
func (p *parser) accept(keywords ...string) bool {
	if !slices.Contains(keywords, p.peek().keyword) {
		return false
	}
	p.pos++
	return true
}

func (p *parser) acceptAnd() bool { return p.accept("and", "&", "&&") }
func (p *parser) acceptOr() bool  { return p.accept("or", "|", "||") }

// filter reads the whole input. States that stand before the expression are
// its base, as in ss; with an operator after them they are a predicate like
// any other.
func (p *parser) filter() (*Filter, error) {
	if p.atEnd() {
		return &Filter{base: defaultStates}, nil
	}
	var f Filter
	if set, ok, err := p.states(); err != nil {
		return nil, err
	} else if ok {
		if p.atEnd() {
			return &Filter{base: set, named: true}, nil
		}
		f.base, f.named = set, true
		if p.acceptAnd() || p.acceptOr() {
			p.pos, f.named = 0, false
		}
	}
	expr, err := p.or(f.named)
	if err != nil {
		return nil, err
	}
	if !p.atEnd() {
		return nil, p.errorAt(p.peek().column, "%q closes nothing", p.peek().text)
	}
	if f.named {
		f.expr = expr
		return &f, nil
	}
	if set, ok := expr.(statePred); ok {
		return &Filter{base: States(set), named: true}, nil
	}
	return &Filter{base: defaultStates | namedStates(expr, false), expr: expr}, nil
}

// or reads alternatives. continues tells that operators could stand here too.
func (p *parser) or(continues bool) (node, error) {
	var kids []node
	for {
		kid, err := p.and(continues)
		if err != nil {
			return nil, err
		}
		kids = append(kids, kid)
		if !p.acceptOr() {
			return newOr(kids), nil
		}
		continues = false
	}
}

func (p *parser) and(continues bool) (node, error) {
	var kids []node
	for {
		kid, err := p.unary(continues)
		if err != nil {
			return nil, err
		}
		kids = append(kids, kid)
		continues = !p.acceptAnd()
		if next := p.peek().keyword; continues && (p.atEnd() || next == ")" || next == "or" || next == "|" || next == "||") {
			return newAnd(kids), nil
		}
	}
}

func (p *parser) unary(continues bool) (node, error) {
	start := p.peek()
	p.depth++
	defer func() { p.depth-- }()
	if p.depth > maxNesting {
		return nil, p.errorAt(start.column, "nested deeper than %d", maxNesting)
	}
	switch {
	case p.accept("not", "!"):
		n, err := p.unary(false)
		if err != nil {
			return nil, err
		}
		return newNot(n), nil
	case p.accept("("):
		n, err := p.or(false)
		if err != nil {
			return nil, err
		}
		if !p.accept(")") {
			return nil, p.errorAt(p.peek().column, "no ) for the ( of column %d", start.column)
		}
		return n, nil
	}
	if set, ok, err := p.states(); err != nil {
		return nil, err
	} else if ok {
		return statePred(set), nil
	}
	return p.predicate(continues)
}

// states reads a run of "state S" and "exclude S". As in ss, states add up,
// and a leading exclude takes from all.
func (p *parser) states() (set States, ok bool, err error) {
	for ; ; ok = true {
		add := p.accept("state")
		if !add && !p.accept("exclude", "excl") {
			return set, ok, nil
		}
		word := p.peek()
		named, found := stateByName(word.keyword)
		if !found {
			names := stateWords()
			switch word.keyword {
			case "=", "==", "eq", "!=", "ne", "neq":
				err := p.errorAt(word.column, "state takes no operator, the name follows at once")
				return 0, false, err
			}
			return 0, false, p.unknown(word, "state", names, names)
		}
		p.pos++
		switch {
		case add:
			set |= named
		case !ok:
			set = AllStates &^ named
		default:
			set &^= named
		}
	}
}

// unknown is the error for a word that is none of the words legal there.
func (p *parser) unknown(word token, what string, legal, show []string) *FilterError {
	if word.column == p.end {
		return p.errorAt(word.column, "%s missing, one of: %s", what, strings.Join(show, " "))
	}
	e := p.errorAt(word.column, "unknown %s %.40q", what, word.text)
	if e.Suggestion = nearest(word.text, legal); e.Suggestion == "" {
		e.Msg += ", must be one of: " + strings.Join(show, " ")
	}
	return e
}

func (p *parser) predicate(continues bool) (node, error) {
	word := p.peek()
	switch word.keyword {
	case "src", "dst":
		p.pos++
		return p.host(word)
	case "fwmark":
		p.pos++
		return p.fwmark(word)
	case "autobound":
		p.pos++
		low, high := uint16(32768), uint16(60999) // Linux's default range
		if p.resolver.Ephemeral != nil {
			if l, h, ok := p.resolver.Ephemeral(); ok {
				low, high = l, h
			}
		}
		return autoboundPred{low, high}, nil
	case "blind":
		p.pos++
		return blindPred{}, nil
	}
	for f := range fields {
		if fields[f].name == word.keyword {
			p.pos++
			return p.compare(word, field(f))
		}
	}
	show := Predicates()
	legal := append(show, "not")
	if continues {
		legal = append(legal, "and", "or")
	}
	e := p.unknown(word, "predicate", legal, show)
	if _, ok := stateByName(word.keyword); ok {
		e.Suggestion = "state " + word.keyword
	}
	return nil, e
}

// Predicates lists the words that a predicate of a filter begins with.
func Predicates() []string {
	words := []string{"state", "exclude", "src", "dst", "fwmark", "autobound", "blind"}
	for _, f := range fields {
		words = append(words, f.name)
	}
	return words
}

// operator reads a comparison; none at all means equal.
func (p *parser) operator(of token, ordered bool) (op, error) {
	next := p.peek()
	o := opEQ
	switch next.keyword {
	case "=", "==", "eq":
	case "!=", "ne", "neq":
		o = opNE
	case "<", "lt":
		o = opLT
	case "<=", "le", "leq":
		o = opLE
	case ">", "gt":
		o = opGT
	case ">=", "ge", "geq":
		o = opGE
	default:
		return opEQ, nil
	}
	if o > opNE && !ordered {
		return o, p.errorAt(next.column, "%s takes = or !=", of.keyword)
	}
	p.pos++
	return o, nil
}

// value takes the word after an operator.
func (p *parser) value(of token, want string) (token, error) {
	word := p.peek()
	switch {
	case p.atEnd():
		return word, p.errorAt(word.column, "%s: value missing, want %s", of.keyword, want)
	case word.keyword != "" && strings.Contains(operators, word.keyword[:1]):
		return word, p.errorAt(word.column, "%s: %q instead of a value, want %s", of.keyword, word.text, want)
	}
	p.pos++
	return word, nil
}
