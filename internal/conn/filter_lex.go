package conn

import (
	"strings"
	"unicode"
)

// maxFilter bounds the joined input, in bytes, and maxNesting its parentheses
// and nots: filters also come from files and from the network.
const (
	maxFilter  = 16 << 10
	maxNesting = 100
)

type token struct {
	text    string
	keyword string // text in lower case; "" for what was quoted, which is never a keyword
	column  int
}

const operators = "()!=<>&|"

func (p *parser) lex(words []string) error {
	size := 0
	for _, w := range words {
		size += len(w) + 1
	}
	if size > maxFilter {
		return &FilterError{Column: 1, Msg: "filter longer than 16 KiB"}
	}
	p.input = strings.ToValidUTF8(strings.Join(words, " "), string(unicode.ReplacementChar))
	in := []rune(p.input)
	p.end = len(in) + 1
	for i := 0; i < len(in); {
		start := i
		switch {
		case unicode.IsSpace(in[i]):
			i++
		case strings.ContainsRune(operators, in[i]):
			i++
			if i < len(in) && isPair(in[start], in[i]) {
				i++
			}
			text := string(in[start:i])
			p.tokens = append(p.tokens, token{text, text, start + 1})
		default:
			var err error
			if i, err = p.lexWord(in, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func isPair(a, b rune) bool {
	return b == '=' && (a == '=' || a == '!' || a == '<' || a == '>') || a == b && (a == '&' || a == '|')
}

func (p *parser) lexWord(in []rune, i int) (next int, err error) {
	var text strings.Builder
	start, quote, literal := i, -1, false
	for ; i < len(in); i++ {
		switch r := in[i]; {
		case r == '\\':
			if i++; i == len(in) {
				return i, p.errorAt(i, "nothing after the \\")
			}
			literal = true
			text.WriteRune(in[i])
		case r == '"':
			literal = true
			if quote < 0 {
				quote = i
			} else {
				quote = -1
			}
		case quote < 0 && (unicode.IsSpace(r) || strings.ContainsRune(operators, r)):
			p.addWord(text.String(), start, literal)
			return i, nil
		default:
			text.WriteRune(r)
		}
	}
	if quote >= 0 {
		return i, p.errorAt(quote+1, `no closing " for this one`)
	}
	p.addWord(text.String(), start, literal)
	return i, nil
}

func (p *parser) addWord(text string, start int, literal bool) {
	t := token{text: text, column: start + 1}
	if !literal {
		t.keyword = strings.ToLower(text)
	}
	p.tokens = append(p.tokens, t)
}

// Quote gives a value of a filter as one word, whatever is in it.
func Quote(s string) string {
	plain := s != ""
	for _, r := range s {
		if unicode.IsSpace(r) || strings.ContainsRune(operators+`"\`, r) {
			plain = false
		}
	}
	if plain {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
