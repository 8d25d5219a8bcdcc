package advise

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"deadpeer/keepalive"
)

var mysqlKeys = []string{"tcp_keepalive_time", "tcp_keepalive_interval", "tcp_keepalive_probes"}

// Groups that the servers read, as mariadbd --help --verbose lists them.
var (
	mariadbGroups = regexp.MustCompile(`^(mysqld|server|mariadb|mariadbd)(-[0-9.]+)?$|^(client-server|galera)$`)
	mysqlGroups   = regexp.MustCompile(`^(mysqld|server)(-[0-9.]+)?$`)
)

func (r *reading) mariadb() { r.optionFiles(mariadbGroups) }

// mysql reads for MariaDB before 10.5, which runs under MySQL's name. MySQL
// itself does not start with these keys set, so they are of MariaDB when
// they are there.
func (r *reading) mysql() { r.optionFiles(mysqlGroups) }

// optionFiles reads the option files in their order, then the command line;
// the last value wins (MariaDB's documentation, "Configuring MariaDB with
// Option Files").
func (r *reading) optionFiles(groups *regexp.Regexp) {
	files := []string{"/etc/my.cnf", "/etc/mysql/my.cnf"}
	options := map[string]string{}
	for _, arg := range r.args {
		text, ok := strings.CutPrefix(arg, "--")
		if !ok {
			continue
		}
		name, value, _ := strings.Cut(text, "=")
		switch name = mysqlName(name); name {
		case "no_defaults":
			files = nil
		case "defaults_file":
			files = []string{absolute(r.cwd, value)}
		case "defaults_extra_file":
			files = append(files, absolute(r.cwd, value))
		default:
			options[name] = value
		}
	}
	for _, f := range files {
		r.optionFile(f, false, groups)
	}
	for _, key := range mysqlKeys {
		if v, ok := options[key]; ok {
			r.set(key, v, "command line", 0)
		}
	}
	r.expectPolicy(0, true, keepalive.Policy{
		Idle:     r.span("tcp_keepalive_time", time.Second),
		Interval: r.span("tcp_keepalive_interval", time.Second),
		Probes:   r.count("tcp_keepalive_probes"),
	})
}

func (r *reading) optionFile(name string, must bool, groups *regexp.Regexp) {
	text, ok := r.file(name, must)
	if !ok {
		return
	}
	for _, d := range assignments(text, "#;") {
		switch key := mysqlName(d.word(0)); {
		case key == "!include":
			r.include(func() { r.optionFile(absolute(path.Dir(name), d.word(1)), true, groups) })
		case key == "!includedir":
			for _, f := range r.glob(path.Join(absolute(path.Dir(name), d.word(1)), "*.cnf")) {
				r.include(func() { r.optionFile(f, true, groups) })
			}
		case groups.MatchString(d.section) && slices.Contains(mysqlKeys, key):
			r.set(key, d.word(1), name, d.line)
		}
	}
}

// mysqlName is an option's name: dashes and underscores are the same, and
// loose- only forgives those who do not know it.
func mysqlName(name string) string {
	return strings.TrimPrefix(strings.ReplaceAll(name, "-", "_"), "loose_")
}
