package conn

import (
	"fmt"
	"strings"
	"unicode"
)

// FilterError says where and why ParseFilter gave up.
type FilterError struct {
	Input      string // the words joined with single spaces
	Column     int    // of the offending word, in characters from 1; one past the end when something is missing
	Msg        string
	Suggestion string // what may have been meant, or ""
}

// Error is one line, fit for a terminal.
func (e *FilterError) Error() string {
	s := fmt.Sprintf("parse filter: column %d: %s", e.Column, e.Msg)
	if e.Suggestion != "" {
		s += fmt.Sprintf(", did you mean %q?", e.Suggestion)
	}
	return s
}

// Pointer gives the input and below it a caret under the offending word, two
// lines without a final newline. Characters that do not print are replaced.
func (e *FilterError) Pointer() string {
	line := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, e.Input)
	return line + "\n" + strings.Repeat(" ", max(0, e.Column-1)) + "^"
}

// nearest is the candidate a slip or two away from word, or "".
func nearest(word string, candidates []string) string {
	word = strings.ToLower(word)
	best, limit := "", min(2, len(word)/2)
	if len(word) > 32 {
		return ""
	}
	for _, c := range candidates {
		if d := slips(word, c); d <= limit && d < len(c) {
			best, limit = c, d-1
		}
	}
	return best
}

// slips counts the insertions, deletions, substitutions and swaps of
// neighbours between a and b (optimal string alignment).
func slips(a, b string) int {
	var two []int
	one := make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
		two, one = one, row
	}
	return one[len(b)]
}
