package advise

import (
	"path"
	"slices"
	"strings"
	"time"

	"deadpeer/keepalive"
)

var pgbouncerKeys = []string{"tcp_keepalive", "tcp_keepidle", "tcp_keepintvl", "tcp_keepcnt", "tcp_user_timeout"}

// pgbouncer reads the file that pgbouncer(1) was started with.
func (r *reading) pgbouncer() {
	file := "/etc/pgbouncer/pgbouncer.ini"
	for i := 1; i < len(r.args); i++ {
		switch arg := r.args[i]; {
		case arg == "-u" || arg == "--user":
			i++
		case !strings.HasPrefix(arg, "-"):
			file = absolute(r.cwd, arg)
		}
	}
	r.pgbouncerFile(file)
	r.expectPolicy(0, r.value("tcp_keepalive") != "0", keepalive.Policy{
		Idle:        r.span("tcp_keepidle", time.Second),
		Interval:    r.span("tcp_keepintvl", time.Second),
		Probes:      r.count("tcp_keepcnt"),
		UserTimeout: r.span("tcp_user_timeout", time.Millisecond),
	})
}

func (r *reading) pgbouncerFile(name string) {
	text, ok := r.file(name, true)
	if !ok {
		return
	}
	for _, d := range assignments(text, "#;") {
		switch key := strings.ToLower(d.word(0)); {
		case key == "%include":
			r.include(func() { r.pgbouncerFile(absolute(path.Dir(name), d.word(1))) })
		case d.section == "pgbouncer" && slices.Contains(pgbouncerKeys, key):
			r.set(key, d.word(1), name, d.line)
		}
	}
}
