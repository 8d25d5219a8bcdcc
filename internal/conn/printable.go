package conn

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes a string that somebody else chose safe to show: control
// characters (and with them ANSI escapes and line breaks), bidirectional
// controls, zero-width and other invisible characters and invalid UTF-8 come
// out as \x1b, \u202e or \U000e0041. Ordinary text is returned as it is,
// without allocating. A backslash is ordinary (systemd's unit names are full
// of them), so the result is for eyes and cannot be undone.
func Printable(s string) string {
	i := unprintable(s)
	if i == len(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i < len(s) {
		b.WriteString(s[:i])
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case n == 1: // ASCII, or a byte that is no UTF-8
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		s = s[i+n:]
		i = unprintable(s)
	}
	b.WriteString(s)
	return b.String()
}

// unprintable is the offset of the first character to escape, or len(s).
func unprintable(s string) int {
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				return i
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) ||
			// Letters and marks that IsPrint allows though nobody sees them.
			unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return i
		}
		i += n
	}
	return len(s)
}
