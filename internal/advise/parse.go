package advise

import (
	"strconv"
	"strings"
	"time"
)

// directive is one line of a configuration: its words, and the section it
// stands in where the format has sections.
type directive struct {
	section string
	words   []string
	line    int
}

// word is the i-th word, "" when there are fewer.
func (d directive) word(i int) string {
	if i < len(d.words) {
		return d.words[i]
	}
	return ""
}

// lines splits a file into directives of words: Redis, sshd, HAProxy, ibconfig.
func lines(text string) (list []directive) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		if words := split(line); len(words) > 0 {
			list = append(list, directive{words: words, line: n})
		}
	}
	return list
}

// split breaks a line into words at blanks. Quotes keep blanks together, a
// backslash takes the next character as it is, # begins a comment.
func split(line string) (words []string) {
	var word strings.Builder
	var quote byte
	inside := false
	end := func() {
		if inside {
			words = append(words, word.String())
			word.Reset()
			inside = false
		}
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(line) && line[i+1] != '\n':
			i++
			word.WriteByte(line[i])
			inside = true
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, inside = c, true
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			end()
		case c == '#' && !inside:
			return words
		default:
			word.WriteByte(c)
			inside = true
		}
	}
	end()
	return words
}

// assignments splits a file of "key = value" lines, with [sections] and
// directives such as !include: MySQL, PgBouncer, firebird.conf. comments are
// the characters that begin one, at the start of a line or after a blank.
func assignments(text, comments string) (list []directive) {
	section, n := "", 0
	for line := range strings.Lines(text) {
		n++
		line = uncomment(strings.TrimSpace(line), comments)
		if line == "" {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			name, _, _ = strings.Cut(name, "]")
			section = strings.TrimSpace(name)
			continue
		}
		d := directive{section: section, line: n}
		if key, value, ok := strings.Cut(line, "="); ok && !strings.ContainsAny(line[:1], "!%") {
			d.words = []string{strings.TrimSpace(key), unquote(strings.TrimSpace(value))}
		} else {
			d.words = split(line)
		}
		if len(d.words) > 0 {
			list = append(list, d)
		}
	}
	return list
}

func uncomment(line, comments string) string {
	for i := range len(line) {
		if strings.IndexByte(comments, line[i]) >= 0 && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return strings.TrimSpace(line[:i])
		}
	}
	return line
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '\'' || s[0] == '"') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// unitOf knows the units of times in the languages of all these files.
func unitOf(name string) (time.Duration, bool) {
	switch strings.ToLower(name) {
	case "us":
		return time.Microsecond, true
	case "ms":
		return time.Millisecond, true
	case "s":
		return time.Second, true
	case "m", "min":
		return time.Minute, true
	case "h":
		return time.Hour, true
	case "d":
		return 24 * time.Hour, true
	case "w":
		return 7 * 24 * time.Hour, true
	}
	return 0, false
}

// span reads a time such as 60, 60s, 1min or 1h30m; a number without a unit
// counts in unit.
func span(text string, unit time.Duration) (total time.Duration, ok bool) {
	const most = 1 << 32 * time.Millisecond // 49 days: beyond every setting here
	text = strings.ReplaceAll(text, " ", "")
	for rest := text; rest != ""; {
		n := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if n < 0 {
			n = len(rest)
		}
		number, err := strconv.ParseFloat(rest[:n], 64)
		if err != nil {
			return 0, false
		}
		rest = rest[n:]
		end := strings.IndexFunc(rest, func(r rune) bool { return r >= '0' && r <= '9' })
		if end < 0 {
			end = len(rest)
		}
		scale := unit
		if end > 0 {
			if scale, ok = unitOf(rest[:end]); !ok {
				return 0, false
			}
		}
		rest = rest[end:]
		if number*float64(scale) > float64(most-total) {
			return 0, false
		}
		total += time.Duration(number * float64(scale))
	}
	return total, text != ""
}
