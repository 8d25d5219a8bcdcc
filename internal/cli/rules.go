package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/keepalive"
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
	var doc, more yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(b))
	if err := in.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, notYAML(b, err)
	}
	if err := in.Decode(&more); err == nil {
		return nil, at(&more, errors.New("a second document begins: give one list"))
	} else if !errors.Is(err, io.EOF) {
		return nil, notYAML(b, err)
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

// notYAML says where the parser stopped, and where what it was reading began.
// It names the tab that is mostly to blame.
func notYAML(b []byte, err error) error {
	wrong, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return errors.New(conn.Printable(err.Error()))
	}
	line, column := wrong.Mark.Line, wrong.Mark.Column
	if line == 0 { // a character that is not allowed has its offset in bytes only
		before := b[:min(max(wrong.Mark.Index, 0), len(b))]
		line = 1 + bytes.Count(before, []byte("\n"))
		column = 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	}
	text := conn.Printable(wrong.Message)
	if lines := strings.Split(string(b), "\n"); line <= len(lines) && strings.HasPrefix(tail(lines[line-1], column-1), "\t") {
		text = "a tab: YAML is indented by spaces"
	} else if began := wrong.ContextMark; began.Line != 0 && began != wrong.Mark {
		text += fmt.Sprintf(" %s from line %d, column %d on", conn.Printable(wrong.ContextMsg), began.Line, began.Column)
	}
	return fmt.Errorf("line %d, column %d: %s", line, column, text)
}

// tail is a text without its first n characters.
func tail(s string, n int) string {
	for ; n > 0 && s != ""; n-- {
		_, size := utf8.DecodeRuneInString(s)
		s = s[size:]
	}
	return s
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
	where := map[string]*yaml.Node{} // the values
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		set, known := keys[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !known:
			return rule, at(key, unknownKey(key.Value, keys))
		case where[key.Value] != nil:
			return rule, at(key, fmt.Errorf("%s is there twice", key.Value))
		case value.Kind != yaml.ScalarNode:
			return rule, at(value, fmt.Errorf("%s: one value is wanted", key.Value))
		}
		where[key.Value] = value
		if err := set(value.Value); err != nil {
			return rule, at(value, fmt.Errorf("%s: %w", key.Value, err))
		}
	}
	value := func(key string) *yaml.Node { return cmp.Or(where[key], n) }
	if rule.Policy, err = line.policy.attachable(line.inFlight); err != nil {
		return rule, policyAt(value, err)
	}
	if rule.Filter, err = conn.ParseFilter(strings.Fields(line.match), resolver()); err != nil {
		return rule, filterAt(value("match"), err)
	}
	rule.New, rule.Enforce, rule.Cgroup, rule.Unit = line.new, line.enforce, line.cgroup, line.unit
	flags := common{unit: line.unit, cgroup: line.cgroup}
	rule.Future = rule.Filter
	only, err := conn.ParseFilter(flags.predicates(), resolver())
	if err != nil {
		return rule, filterAt(cmp.Or(where["cgroup"], value("unit")), err)
	}
	rule.Filter = rule.Filter.And(only)
	if err := checkFuture(&rule); err != nil {
		return rule, at(n, err)
	}
	if rule.New {
		if _, err := rule.Future.Future(); err != nil {
			return rule, at(value("match"), err)
		}
	}
	return rule, nil
}

// policyAt says what is wrong with a policy at the value that is, in the words
// of the file: flags have the names of its keys, spelled otherwise.
func policyAt(value func(key string) *yaml.Node, err error) error {
	key, text := "", err.Error()
	if wrong, ok := errors.AsType[*keepalive.PolicyError](err); ok {
		key = strings.ReplaceAll(wrong.Field, " ", "_")
	} else if strings.HasPrefix(text, "--profile:") {
		key = "profile"
	}
	text = strings.NewReplacer("--user-timeout", "user_timeout", "--in-flight", "in_flight", "--", "").Replace(text)
	return at(value(key), errors.New(text))
}

// filterAt shows the filter below what is wrong with it, after the place of it.
func filterAt(n *yaml.Node, err error) error {
	if wrong, ok := errors.AsType[*conn.FilterError](err); ok {
		err = fmt.Errorf("%s\n%s", wrong.Error(), wrong.Pointer())
	}
	return at(n, err)
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
