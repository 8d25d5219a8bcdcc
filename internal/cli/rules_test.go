package cli

import (
	"strings"
	"testing"
	"time"
)

func TestParseRules(t *testing.T) {
	rules, err := parseRules([]byte(`
- match: "sport = :5432"
  within: 90s
- {match: dst 10.0.0.0/8, idle: 30s, interval: 5s, probes: 4, in_flight: true, new: true, enforce: true}
- profile: lan
`))
	if err != nil || len(rules) != 3 {
		t.Fatal(rules, err)
	}
	if r := rules[0]; r.Filter.String() != "sport = :5432" || r.Policy.UserTimeout != -1 || r.Policy.Idle == 0 || r.New {
		t.Errorf("%+v", r)
	}
	if r := rules[1]; r.Policy.UserTimeout != 50*time.Second || !r.New || !r.Enforce || r.Future.String() != "dst = 10.0.0.0/8" {
		t.Errorf("%+v", r)
	}
}

func TestParseRulesRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "no rules",
		"match: x":                          "line 1, column 1: a list",
		"[]":                                "line 1, column 1: a list",
		"- x":                               "line 1, column 3: a rule",
		"- withn: 90s":                      `line 1, column 3: unknown key "withn", did you mean "within"`,
		"- within: 90s\n  zzzzzzz: 1":       `line 2, column 3: unknown key "zzzzzzz"`,
		"- within: 90":                      "line 1, column 11: within: parse duration",
		"- within: [90s]":                   "line 1, column 11: within: one value",
		"- within: 90s\n  within: 80s":      "line 2, column 3: within is there twice",
		"- {within: 90s, match: sprt = 1}":  `line 1, column 24:`,
		"- {within: 90s, new: maybe}":       `neither true nor false`,
		"- {within: 90s, enforce: true}":    "line 1, column 3: enforce needs new",
		"- {idle: 9s, new: true}":           "line 1, column 3: new needs within",
		"- match: a = 1":                    "give a policy",
		"- within: 90s\n\tnew: true":        "line 2, column 1: a tab",
		"- match: \"é\" \t\n \twithin: 90s": "line 2, column 2: a tab",
		"- within: 90s\n---\n- within: 30s": "line 2, column 1: a second document",
		"- {idle: 9s, interval: 9s,\n probes: 300}":              "line 2, column 10: probes 300: allowed is 1 to 127",
		"- within: 90s\n  profile: lan":                          "line 1, column 3: give one of profile, within, or idle with interval and probes",
		"- within: 90s\n- profile: lann":                         "line 2, column 12: profile: find profile: no \"lann\": did you mean lan",
		"- within: 90s\n  in_flight: true\n  user_timeout: 9s":   "give one of in_flight and user_timeout",
		"- within: 90s\n  new: true\n  match: comm = a":          "line 3, column 10: \"comm = a\" cannot be told of a connection before it exists",
		"- within: 90s\n  match: sport = :1 annd dport = :2":     "line 2, column 10: parse filter: column 12: unknown predicate \"annd\", did you mean \"and\"?\nsport = :1 annd dport = :2\n           ^",
		"- within: 90s\n  cgroup: /no-such\n  match: dport = :2": "line 2, column 11: parse filter",
		"- match: \"sport = :1\n  within: 90s":                   "line 2, column 14: found unexpected end of stream while scanning a quoted scalar from line 1, column 10 on",
		"rules:\n- within: 90s":                                  "line 1, column 1: a list",
		"- {within: 90s, ? [a] : b}":                             "unknown key",
		"- \x00":                                                 "line 1, column 3: control characters are not allowed",
		"- ä\n- é: \x01":                                         "line 2, column 6: control characters are not allowed",
		"- é: \xff":                                              "line 1, column 6: invalid leading UTF-8 octet",
		"- within: 90s: 1":                                       "line 1, column 14: mapping values are not allowed in this context",
		"- {within: 90s\n":                                       "line 2, column 1: did not find expected ',' or '}' while parsing a flow mapping from line 1, column 3 on",
		"- within: 90s\n---\n- @":                                "line 3, column 3: found character that cannot start any token",
		"- *none":                                                "line 1, column 3: unknown anchor 'none' referenced",
		"- *\u202e":                                              "line 1, column ",
		strings.Repeat("- {within: 90s}\n", 65):                  "65 rules, allowed are 64",
		"- {probes: x}":                                          `"x" is not a number from 1 on`,
	} {
		if _, err := parseRules([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", text, err, want)
		}
	}
}

func FuzzParseRules(f *testing.F) {
	f.Add([]byte("- {match: \"sport = :5432\", within: 90s}"))
	f.Add([]byte("- {match: dst 10.0.0.0/8, idle: 30s, interval: 5s, probes: 4, in_flight: true, new: true, enforce: true}"))
	f.Add([]byte("- &a {within: 90s}\n- *a\n- {<<: *a}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, err := parseRules(b)
		if err != nil {
			return
		}
		for _, r := range rules {
			if r.Filter == nil || r.Policy.ValidateFor("linux") != nil || r.Enforce && !r.New {
				t.Errorf("%q: accepted %+v", b, r)
			}
		}
	})
}
