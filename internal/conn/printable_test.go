package conn

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"empty", "", ""},
		{"plain", "postgres: writer (5432)", "postgres: writer (5432)"},
		{"unit", `dev-disk-by\x2duuid.service`, `dev-disk-by\x2duuid.service`},
		{"other scripts", "Größe 日本語 العربية é", "Größe 日本語 العربية é"},
		{"replacement character itself", "a\ufffdb", "a\ufffdb"},
		{"newline and tab", "a\nb\tc", `a\x0ab\x09c`},
		{"ansi", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"delete", "a\x7f", `a\x7f`},
		{"c1 csi", "a\u009b31m", `a\u009b31m`},
		{"bidi", "evil\u202egpj.exe", `evil\u202egpj.exe`},
		{"isolates", "\u2066a\u2069", `\u2066a\u2069`},
		{"zero width", "pay\u200bpal\u200d\ufeff", `pay\u200bpal\u200d\ufeff`},
		{"invisible letter", "a\u3164b", `a\u3164b`},
		{"variation selector", "a\ufe0f", `a\ufe0f`},
		{"line separator", "a\u2028b", `a\u2028b`},
		{"tags", "a\U000e0041", `a\U000e0041`},
		{"invalid utf-8", "a\xff\xc3(", `a\xff\xc3(`},
		{"cut rune", "a\xe6\x97", `a\xe6\x97`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Printable(tt.in); got != tt.want {
				t.Errorf("Printable(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func TestPrintableLeavesOrdinaryTextAlone(t *testing.T) {
	s := strings.Repeat("postgres größer ", 8)
	if n := testing.AllocsPerRun(100, func() { _ = Printable(s) }); n != 0 {
		t.Errorf("%v allocations for ordinary text", n)
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "ok", "\x1b[2J", "\u202e", "\xff", "a\u200b\u3164", "\U000e0041"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := Printable(s)
		if !utf8.ValidString(out) {
			t.Fatalf("Printable(%q) = %q: not UTF-8", s, out)
		}
		if again := Printable(out); again != out {
			t.Fatalf("Printable(%q) = %q still has something to escape: %q", s, out, again)
		}
		if i := unprintable(s); i == len(s) && out != s {
			t.Fatalf("Printable changed %q to %q", s, out)
		}
	})
}
