package host

import (
	"strings"
	"testing"
)

const timeKey = "net.ipv4.tcp_keepalive_time"

// bootCase is a set of files and what the two readers make of them, as
// measured with systemd 252 and procps-ng 4.0.2. 0: nothing sets the value.
type bootCase struct {
	name            string
	files           map[string]string // a content "-> TARGET" is a symlink, "folder" a folder
	systemd, procps int64
	where           string // of systemd's, when there is one, else of procps'
}

func bootCases() []bootCase {
	one := func(content string) map[string]string { return map[string]string{"/etc/sysctl.d/50.conf": content} }
	two := func(a, b string) map[string]string {
		return map[string]string{"/etc/sysctl.d/10.conf": a, "/etc/sysctl.d/20.conf": b}
	}
	const k = timeKey
	return []bootCase{
		{"nothing", nil, 0, 0, ""},
		{"later file", two(k+" = 10", "net/ipv4/tcp_keepalive_time=20"), 20, 20, "/etc/sysctl.d/20.conf:1"},
		{"later line", one("# c\n" + k + "=10\n; c\n\n" + k + "=20\n"), 20, 20, "/etc/sysctl.d/50.conf:5"},
		{"pattern after name", two(k+" = 10", "net.ipv4.tcp_keepalive_tim*=20"), 10, 10, "/etc/sysctl.d/10.conf:1"},
		{"pattern before name", two("net.ipv4.tcp_keepalive_tim*=20", k+" = 10"), 10, 10, "/etc/sysctl.d/20.conf:1"},
		{"excluded, then pattern", one("-" + k + "\nnet.ipv4.tcp_keepalive_tim*=20\n"), 0, 0, ""},
		{"pattern, then excluded", one("net.ipv4.tcp_keepalive_tim*=20\n-" + k + "\n"), 0, 0, ""},
		{"name, then excluded", two(k+" = 10", "-"+k+"\n"), 0, 10, "/etc/sysctl.d/10.conf:1"},
		{"excluded, then name", one("-" + k + "\n" + k + "=30\n"), 30, 30, "/etc/sysctl.d/50.conf:2"},
		{"excluded by pattern", two("net.ipv4.tcp_keepalive_ti*=12\n", "-net.ipv4.tcp_keepalive_t*\n"), 12, 12, "/etc/sysctl.d/10.conf:1"},
		{"dash", one("-" + k + " = 10"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"dash and space", one("- " + k + " = 10"), 10, 0, "/etc/sysctl.d/50.conf:1"},
		{"sysctl.conf", map[string]string{"/etc/sysctl.conf": k + " = 10", "/etc/sysctl.d/99-z.conf": k + "=20"}, 20, 10, "/etc/sysctl.d/99-z.conf:1"},
		{"sysctl.conf linked", map[string]string{"/etc/sysctl.conf": k + " = 10", "/etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf", "/etc/sysctl.d/90-a.conf": k + "=20"}, 10, 10, "/etc/sysctl.d/99-sysctl.conf:1"},
		{"sysctl.conf has a pattern", map[string]string{"/etc/sysctl.conf": "net.ipv4.tcp_keepalive_tim*=20", "/etc/sysctl.d/20.conf": k + "=10"}, 10, 10, "/etc/sysctl.d/20.conf:1"},
		{"masked by a link to null", map[string]string{"/usr/lib/sysctl.d/50.conf": k + "=10", "/etc/sysctl.d/50.conf": "-> /dev/null"}, 0, 0, ""},
		{"masked by an empty file", map[string]string{"/usr/lib/sysctl.d/50.conf": k + "=10", "/etc/sysctl.d/50.conf": ""}, 0, 0, ""},
		{"masked by a dangling link", map[string]string{"/usr/lib/sysctl.d/50.conf": k + "=10", "/etc/sysctl.d/50.conf": "-> nowhere"}, 0, 0, ""},
		{"masked by a folder", map[string]string{"/usr/lib/sysctl.d/50.conf": k + "=10", "/etc/sysctl.d/50.conf": "folder"}, 0, 0, ""},
		{"earlier name in a better folder", map[string]string{"/usr/lib/sysctl.d/60.conf": k + "=10", "/etc/sysctl.d/50.conf": k + "=20"}, 10, 10, "/usr/lib/sysctl.d/60.conf:1"},
		{"hidden", map[string]string{"/etc/sysctl.d/.50.conf": k + "=10"}, 0, 10, "/etc/sysctl.d/.50.conf:1"},
		{"not .conf", map[string]string{"/etc/sysctl.d/50.conf.bak": k + "=10", "/etc/sysctl.d/50.conf~": k + "=10"}, 0, 0, ""},
		{"comment after the value", one(k + " = 10 # x"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"two numbers", one(k + " = 10 11"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"not a number", one(k + " = 10x"), 0, 0, ""},
		{"not a number, after one", two(k+"=30", k+"=12x"), 0, 30, "/etc/sysctl.d/10.conf:1"},
		{"not a number, with a pattern", one("net.ipv4.tcp_keepalive_tim*=20\n" + k + "=12x\n"), 0, 0, ""},
		{"out of range, after one", one(k + " = 10\n" + k + " = 99999999999\n"), 0, 10, "/etc/sysctl.d/50.conf:1"},
		{"no equals sign", one(k + " 10"), 0, 0, ""},
		{"no value", one(k + " ="), 0, 0, ""},
		{"two equals signs", one(k + " == 10"), 0, 0, ""},
		{"continued", one(k + " = \\\n10\n"), 0, 0, ""},
		{"byte order mark", one("\ufeff" + k + " = 10\n"), 0, 0, ""},
		{"CRLF", one(k + " = 10\r\n"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"separators mixed", one("net.ipv4/tcp_keepalive_time = 10"), 0, 0, ""},
		{"separators mixed otherwise", one("net/ipv4.tcp_keepalive_time = 10"), 0, 0, ""},
		{"whole path", one("/proc/sys/net/ipv4/tcp_keepalive_time = 10"), 0, 0, ""},
		{"slash first", one("/net/ipv4/tcp_keepalive_time = 10"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"separator doubled", one("net..ipv4.tcp_keepalive_time = 10"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"pattern in the middle", one("net.*.tcp_keepalive_time = 10"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"pattern crosses no separator", one("*.tcp_keepalive_time = 10"), 0, 0, ""},
		{"class", one("net.ipv4.tcp_keepalive_[!a-s]ime = 10"), 10, 10, "/etc/sysctl.d/50.conf:1"},
		{"braces", one("net.ipv4.tcp_keepalive_{time,x} = 10"), 0, 0, ""},
		{"case of the key", one("NET.ipv4.tcp_keepalive_time = 10"), 0, 0, ""},
		{"hexadecimal", one(k + " = 0x10"), 16, 16, "/etc/sysctl.d/50.conf:1"},
		{"octal", one(k + " = 010"), 8, 8, "/etc/sysctl.d/50.conf:1"},
		{"not octal", one(k + " = 08"), 0, 0, ""},
		{"negative", one(k + " = -5"), -5, -5, "/etc/sysctl.d/50.conf:1"},
		{"two patterns", one("net.ipv4.tcp_keepalive_t*=11\nnet.ipv4.tcp_keepalive_ti*=12\n"), 12, 12, "/etc/sysctl.d/50.conf:2"},
		{"a pattern again", one("net.ipv4.tcp_keepalive_t*=11\nnet.ipv4.tcp_keepalive_ti*=12\nnet.ipv4.tcp_keepalive_t*=13\n"), 13, 13, "/etc/sysctl.d/50.conf:3"},
		{"a pattern again, the same", one("net.ipv4.tcp_keepalive_t*=11\nnet.ipv4.tcp_keepalive_ti*=12\nnet.ipv4.tcp_keepalive_t*=11\n"), 12, 11, "/etc/sysctl.d/50.conf:2"},
		{"order of names", map[string]string{"/etc/sysctl.d/50-B.conf": k + "=10", "/etc/sysctl.d/50-a.conf": k + "=11"}, 11, 11, "/etc/sysctl.d/50-a.conf:1"},
		{"no key", one("=20\n" + k + "=21\n"), 21, 21, "/etc/sysctl.d/50.conf:2"},
	}
}

func timeParameter() Parameter { return linuxParameters()[0] }

// Whatever a file says, what editConf adds to it is what both readers come to.
func FuzzEditConf(f *testing.F) {
	for _, c := range bootCases() {
		for _, content := range c.files {
			f.Add([]byte(content))
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		after := editConf(content, []wanted{{timeKey, "77"}, {"net.ipv4.tcp_retries2", "8"}})
		files := []confFile{{dir: "/etc/sysctl.d", name: "90-deadpeer.conf", content: after}}
		for _, r := range []reader{systemd, procps} {
			for i, want := range map[int]int64{0: 77, 3: 8} {
				if w, ok := r.winner(linuxParameters()[i], files); !ok || w.Value != want {
					t.Errorf("%s: %+v, %v, want %d, from %q", r, w, ok, want, after)
				}
			}
			// What was said of others is still said.
			p := linuxParameters()[1]
			before, okBefore := r.winner(p, []confFile{{dir: "/etc/sysctl.d", name: "90-deadpeer.conf", content: content}})
			now, okNow := r.winner(p, files)
			if okBefore != okNow || before.Value != now.Value {
				t.Errorf("%s: %s was %+v %v, is %+v %v, from %q", r, p.Name, before, okBefore, now, okNow, content)
			}
		}
		if again := editConf(after, []wanted{{timeKey, "77"}, {"net.ipv4.tcp_retries2", "8"}}); string(again) != string(after) {
			t.Errorf("edited again: %q, was %q", again, after)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","at":"2026-01-02T15:04:05Z","original":{"live":{"net.ipv4.tcp_keepalive_time":"7200"},"file":{"path":"/etc/sysctl.d/90-deadpeer.conf","exists":false}},"before":null,"wrote":{"net.ipv4.tcp_keepalive_time":["60"]},"files":["x"]}`))
	f.Add([]byte(`{"version":1,"original":{"live":{"kernel.core_pattern":"|/bin/sh"}}}`))
	f.Add([]byte(`{"version":1,"original":{"file":{"path":"/etc/shadow"}}}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b, linuxParameters(), dropInPath)
		if err != nil {
			return
		}
		for name := range r.Original.Live {
			if !strings.HasPrefix(name, "net.ipv4.tcp_") {
				t.Errorf("took %q for a parameter", name)
			}
		}
		if r.Original.File != nil && r.Original.File.Path != dropInPath {
			t.Errorf("took %q for our file", r.Original.File.Path)
		}
	})
}

const dropInPath = "/etc/sysctl.d/90-deadpeer.conf"

func TestParseRecordRefuses(t *testing.T) {
	for what, text := range map[string]string{
		"another version":     `{"version":2}`,
		"another parameter":   `{"version":1,"original":{"live":{"kernel.core_pattern":"|/bin/sh"}}}`,
		"not a value":         `{"version":1,"original":{"live":{"net.ipv4.tcp_keepalive_time":"sixty"}}}`,
		"another file":        `{"version":1,"original":{"file":{"path":"/etc/shadow"}}}`,
		"another file before": `{"version":1,"before":{"file":{"path":"/etc/shadow"}}}`,
		"half of one":         `{"version":1,"ori`,
		"an unknown field":    `{"version":1,"run":"x"}`,
	} {
		if r, err := parseRecord([]byte(text), linuxParameters(), dropInPath); err == nil {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

func TestExplain(t *testing.T) {
	for name, want := range map[string]int{
		"net.ipv4.tcp_keepalive_time":           1,
		"NET.IPV4.TCP_KEEPALIVE_TIME":           1,
		"net/ipv4/tcp_keepalive_time":           1,
		"/proc/sys/net/ipv4/tcp_keepalive_time": 1,
		"keepalive_time":                        1,
		"tcp_retries2":                          1,
		"keepalivetime":                         2, // NT and 9x
		"KEEPALIVEINTERVAL":                     2,
		"MaxDataRetries":                        1,
		"tcpmaxdataretransmissions":             1,
		"DisableDHCPMediaSense":                 1,
		"keepidle":                              2, // FreeBSD and macOS
	} {
		if list, err := Explain(name); err != nil || len(list) != want {
			t.Errorf("%s: %d entries, %v; want %d", name, len(list), err, want)
		}
	}
	for name, want := range map[string]string{
		"tcp_keepalive_tme": "did you mean tcp_keepalive_time?",
		"KeepAliveTme":      "did you mean keepalivetime?",
		"\x1b[2J":           `\x1b[2J`,
		"":                  "lists all",
	} {
		if _, err := Explain(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}
