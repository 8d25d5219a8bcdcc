package advise

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"deadpeer/forecast"
	"deadpeer/keepalive"
)

var postgresKeys = []string{
	"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout", "client_connection_check_interval",
}

// postgres reads postgresql.conf, what it includes, then postgresql.auto.conf
// of the data folder, then the command line; the last value wins
// (PostgreSQL's documentation, "Setting Parameters").
func (r *reading) postgres() {
	data, options := postgresCommand(r.args)
	file := options["config_file"]
	if data == "" {
		data = r.cwd // every server process works in its data folder
	}
	data = absolute(r.cwd, data)
	if file == "" {
		file = r.first(path.Join(data, "postgresql.conf"), debianCluster(data))
	}
	if file == "" {
		r.problem("no postgresql.conf in %s", data)
		return
	}
	r.postgresFile(absolute(r.cwd, file), true, &data)
	r.postgresFile(path.Join(data, "postgresql.auto.conf"), false, &data)
	for _, key := range postgresKeys {
		if v, ok := options[key]; ok {
			r.set(key, v, "command line", 0)
		}
	}
	p := keepalive.Policy{
		Idle:     r.span("tcp_keepalives_idle", time.Second),
		Interval: r.span("tcp_keepalives_interval", time.Second),
		Probes:   r.count("tcp_keepalives_count"),
		// Of a socket it must be the value exactly.
		UserTimeout: r.span("tcp_user_timeout", time.Millisecond),
	}
	r.expectPolicy(0, true, p)
}

// debianCluster is where Debian keeps the configuration of a data folder
// /var/lib/postgresql/VERSION/CLUSTER.
func debianCluster(data string) string {
	return path.Join("/etc/postgresql", path.Base(path.Dir(data)), path.Base(data), "postgresql.conf")
}

func (r *reading) postgresFile(name string, must bool, data *string) {
	text, ok := r.file(name, must)
	if !ok {
		return
	}
	folder := path.Dir(name)
	for _, d := range parsePostgres(text) {
		key, value := d.word(0), d.word(1)
		switch key {
		case "include", "include_if_exists":
			r.include(func() { r.postgresFile(absolute(folder, value), key == "include", data) })
		case "include_dir":
			// Only names that end in .conf and do not begin with a dot.
			for _, f := range r.glob(path.Join(absolute(folder, value), "*.conf")) {
				if !strings.HasPrefix(path.Base(f), ".") {
					r.include(func() { r.postgresFile(f, true, data) })
				}
			}
		case "data_directory":
			*data = absolute(folder, value)
		default:
			if slices.Contains(postgresKeys, key) {
				r.set(key, value, name, d.line)
			}
		}
	}
}

// parsePostgres reads "name = value" and "name value" lines; values may stand
// in single quotes, with two of them or \' for a quote inside (guc-file.l).
func parsePostgres(text string) (list []directive) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		end := strings.IndexFunc(line, func(r rune) bool { return strings.ContainsRune(" \t=#'", r) })
		if end < 0 {
			end = len(line)
		}
		name := strings.ToLower(line[:end])
		rest := strings.TrimLeft(line[end:], " \t")
		rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
		if name == "" || rest == "" || rest[0] == '#' {
			continue
		}
		list = append(list, directive{words: []string{name, postgresValue(rest)}, line: n})
	}
	return list
}

func postgresValue(s string) string {
	if s[0] != '\'' {
		if end := strings.IndexAny(s, " \t#"); end >= 0 {
			s = s[:end]
		}
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
		case s[i] == '\'' && i+1 < len(s) && s[i+1] == '\'':
			i++
		case s[i] == '\'':
			return b.String()
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// postgresCommand reads the options of postgres(1) that matter here: -D, -c
// NAME=VALUE and --NAME=VALUE, dashes in names standing for underscores.
func postgresCommand(args []string) (data string, options map[string]string) {
	options = map[string]string{}
	for i := 1; i < len(args); i++ {
		arg := args[i]
		next := func(short string) (string, bool) {
			value, ok := strings.CutPrefix(arg, short)
			if ok && value == "" && i+1 < len(args) {
				i++
				return args[i], true
			}
			return value, ok
		}
		assign := func(text string) {
			if name, value, ok := strings.Cut(text, "="); ok {
				options[strings.ToLower(strings.ReplaceAll(name, "-", "_"))] = value
			}
		}
		if text, ok := strings.CutPrefix(arg, "--"); ok {
			assign(text)
		} else if value, ok := next("-D"); ok {
			data = value
		} else if value, ok := next("-c"); ok {
			assign(value)
		}
	}
	return data, options
}

// span is the time a setting says, 0 when it is not set or unreadable.
func (r *reading) span(key string, unit time.Duration) time.Duration {
	v := r.value(key)
	if v == "" {
		return 0
	}
	d, ok := span(v, unit)
	if !ok {
		r.problem("%s: %q is no time", key, v)
	}
	return d
}

// count is the number a setting says, 0 when it is not set or unreadable.
func (r *reading) count(key string) int {
	v := r.value(key)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		r.problem("%s: %q is no count", key, v)
		return 0
	}
	return n
}

// expectPolicy notes what sockets should have. The slowest of all decides
// Within; one that leaves a part to the host leaves that unknown.
func (r *reading) expectPolicy(port uint16, on bool, p keepalive.Policy) {
	first := len(r.expect) == 0
	if len(r.expect) == maxSaid {
		r.problem("more than %d kinds of sockets: the rest is not considered", maxSaid)
		return
	}
	r.expect = append(r.expect, expectation{port, on, p})
	if !on || p.Idle == 0 || p.Interval == 0 || p.Probes == 0 {
		r.Within = 0
		return
	}
	if d := forecast.DetectionTime(p); first || r.Within > 0 {
		r.Within = max(r.Within, d)
	}
}
