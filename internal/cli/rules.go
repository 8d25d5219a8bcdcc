package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

// maxRulesFile bounds a file of rules, in bytes.
const maxRulesFile = 1 << 20

// ruleLine is one rule of a file, with the flags' names for its keys.
type ruleLine struct {
	match, cgroup, unit    string
	policy                 policyFlags
	inFlight, new, enforce bool
}

// readRules reads a file of rules, "-" being standard input.
func (a *app) readRules(path string) ([]engine.AttachRule, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read rules: %w", err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxRulesFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read rules: %w", err)
	case len(b) > maxRulesFile:
		return nil, usage(fmt.Errorf("%s: more than 1 MiB of rules", conn.Printable(path)))
	}
	rules, err := parseRules(b)
	if err != nil {
		return nil, usage(fmt.Errorf("%s: %w", conn.Printable(path), err))
	}
	return rules, nil
}

// parseRules reads a YAML list of rules. What is wrong is said with line and
// column.
func parseRules(b []byte) (rules []engine.AttachRule, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, errors.New(conn.Printable(err.Error()))
	}
	if len(doc.Content) == 0 {
		return nil, errors.New("no rules: a list is wanted, such as - {match: \"sport = :5432\", within: 90s}")
	}
	list := doc.Content[0]
	if list.Kind != yaml.SequenceNode || len(list.Content) == 0 {
		return nil, at(list, errors.New("a list of rules is wanted, such as - {match: \"sport = :5432\", within: 90s}"))
	}
	const most = 64
	if len(list.Content) > most {
		return nil, at(list, fmt.Errorf("%d rules, allowed are %d", len(list.Content), most))
	}
	for _, n := range list.Content {
		rule, err := parseRule(n)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func at(n *yaml.Node, err error) error {
	return fmt.Errorf("line %d, column %d: %w", n.Line, n.Column, err)
}

func parseRule(n *yaml.Node) (rule engine.AttachRule, err error) {
	if n.Kind != yaml.MappingNode {
		return rule, at(n, errors.New("a rule is wanted, such as {match: \"sport = :5432\", within: 90s}"))
	}
	var line ruleLine
	keys := line.keys()
	seen := map[string]bool{}
	matchAt := n
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		set, known := keys[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !known:
			return rule, at(key, unknownKey(key.Value, keys))
		case seen[key.Value]:
			return rule, at(key, fmt.Errorf("%s is there twice", key.Value))
		case value.Kind != yaml.ScalarNode:
			return rule, at(value, fmt.Errorf("%s: one value is wanted", key.Value))
		}
		seen[key.Value] = true
		if err := set(value.Value); err != nil {
			return rule, at(value, fmt.Errorf("%s: %w", key.Value, err))
		}
		if key.Value == "match" {
			matchAt = value
		}
	}
	if rule.Policy, err = line.policy.attachable(line.inFlight); err != nil {
		return rule, at(n, err)
	}
	words := strings.Fields(line.match)
	if rule.Filter, err = conn.ParseFilter(words, resolver()); err != nil {
		return rule, at(matchAt, err)
	}
	rule.New, rule.Enforce, rule.Cgroup, rule.Unit = line.new, line.enforce, line.cgroup, line.unit
	flags := common{unit: line.unit, cgroup: line.cgroup}
	rule.Future = rule.Filter
	only, err := conn.ParseFilter(flags.predicates(), resolver())
	if err != nil {
		return rule, at(n, err)
	}
	rule.Filter = rule.Filter.And(only)
	if err := checkFuture(&rule); err != nil {
		return rule, at(n, err)
	}
	return rule, nil
}

func unknownKey(key string, keys map[string]func(string) error) error {
	var names []string
	for name := range keys {
		names = append(names, name)
	}
	if meant := conn.Nearest(key, names); meant != "" {
		return fmt.Errorf("unknown key %q, did you mean %q", conn.Printable(key), meant)
	}
	return fmt.Errorf("unknown key %q", conn.Printable(key))
}

// keys are those of a rule, with what reads their values.
func (r *ruleLine) keys() map[string]func(string) error {
	text := func(to *string) func(string) error {
		return func(s string) error { *to = s; return nil }
	}
	truth := func(to *bool) func(string) error {
		return func(s string) error {
			switch s {
			case "true", "false":
				*to = s == "true"
				return nil
			}
			return fmt.Errorf("%q is neither true nor false", conn.Printable(s))
		}
	}
	return map[string]func(string) error{
		"match": text(&r.match), "cgroup": text(&r.cgroup), "unit": text(&r.unit),
		"profile": text(&r.policy.profile), "within": r.policy.within.Set, "idle": r.policy.idle.Set, "interval": r.policy.interval.Set,
		"probes": r.policy.probes.Set, "user_timeout": r.policy.userTimeout.Set,
		"in_flight": truth(&r.inFlight), "new": truth(&r.new), "enforce": truth(&r.enforce),
	}
}
