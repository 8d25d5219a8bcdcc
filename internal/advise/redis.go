package advise

import (
	"path"
	"strconv"
	"strings"
	"time"

	"deadpeer/keepalive"
)

// redis reads redis.conf. Redis overwrites its command line with a title, so
// its file is looked for in the usual places, and believed only when it names
// the port that the title does.
func (r *reading) redis() {
	port := ""
	for word := range strings.FieldsSeq(strings.Join(r.args, " ")) {
		if i := strings.LastIndexByte(word, ':'); i >= 0 {
			if _, err := strconv.ParseUint(word[i+1:], 10, 16); err == nil {
				port = word[i+1:]
			}
		}
	}
	patterns := []string{"/etc/redis/*.conf", "/etc/redis.conf", "/etc/redis/redis.conf", "/etc/valkey/*.conf", "/etc/valkey/valkey.conf"}
	for _, arg := range r.args[min(1, len(r.args)):] { // while it still has them
		if strings.HasSuffix(arg, ".conf") {
			patterns = []string{absolute(r.cwd, arg)}
			port = ""
		}
	}
	for _, p := range patterns {
		for _, name := range r.glob(p) {
			if r.first(name) == "" {
				continue
			}
			try := &reading{place: r.place}
			listens := "6379"
			try.redisFile(name, &listens)
			if port == "" || listens == port {
				r.Config = try.Config
				r.redisOption()
				r.redisExpect()
				return
			}
		}
	}
	if !r.redisOption() {
		r.problem("no redis.conf with port %s found; redis-cli -p %s info server names it (config_file)", port, port)
		return
	}
	r.redisExpect()
}

// redisOption reads --tcp-keepalive N of the command line.
func (r *reading) redisOption() (found bool) {
	for i := range r.args {
		if r.args[i] == "--tcp-keepalive" && i+1 < len(r.args) {
			r.set("tcp-keepalive", r.args[i+1], "command line", 0)
			found = true
		}
	}
	return found
}

// redisExpect derives what anetKeepAlive makes of the number: idle N, three
// probes N/3 apart.
func (r *reading) redisExpect() {
	n := 300 * time.Second
	if r.value("tcp-keepalive") != "" {
		n = r.span("tcp-keepalive", time.Second)
	}
	r.expectPolicy(0, n > 0, keepalive.Policy{Idle: n, Interval: max(time.Second, (n / 3).Truncate(time.Second)), Probes: 3})
}

func (r *reading) redisFile(name string, port *string) {
	text, ok := r.file(name, true)
	if !ok {
		return
	}
	for _, d := range lines(text) {
		switch strings.ToLower(d.word(0)) {
		case "include":
			for _, f := range r.glob(absolute(path.Dir(name), d.word(1))) {
				r.include(func() { r.redisFile(f, port) })
			}
		case "port":
			*port = d.word(1)
		case "tcp-keepalive":
			r.set("tcp-keepalive", d.word(1), name, d.line)
		}
	}
}
