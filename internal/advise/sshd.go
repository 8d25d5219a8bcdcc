package advise

import (
	"path"
	"strings"
	"time"
)

// sshd reads sshd_config: the first value of a key wins, and what stands in a
// Match block holds for some clients only (sshd_config(5)).
func (r *reading) sshd() {
	file := "/etc/ssh/sshd_config"
	args := strings.Fields(strings.Join(r.args, " "))
	for i := range args {
		if args[i] == "-f" && i+1 < len(args) {
			file = absolute(r.cwd, args[i+1])
		}
	}
	r.sshdFile(file, path.Dir(file), false)
	interval := r.span("ClientAliveInterval", time.Second)
	count := 3
	if r.value("ClientAliveCountMax") != "" {
		count = r.count("ClientAliveCountMax")
	}
	r.expect = append(r.expect, expectation{on: r.value("TCPKeepAlive") != "no"})
	// A count of 0 asks and never ends the session.
	if interval > 0 && count > 0 {
		r.Within, r.Asks = interval*time.Duration(count), true
	}
}

// sshdFile reads one file; matching tells that it was included inside a Match
// block.
func (r *reading) sshdFile(name, folder string, matching bool) {
	text, ok := r.file(name, true)
	if !ok {
		return
	}
	for _, d := range lines(text) {
		key, value := strings.ToLower(d.word(0)), d.word(1)
		if k, v, ok := strings.Cut(key, "="); ok { // Key=value
			key, value = k, v
		} else if value == "=" {
			value = d.word(2)
		}
		switch key {
		case "match":
			matching = !strings.EqualFold(value, "all")
		case "include":
			for _, pattern := range d.words[1:] {
				for _, f := range r.glob(absolute("/etc/ssh", pattern)) {
					r.include(func() { r.sshdFile(f, folder, matching) })
				}
			}
		}
		for _, known := range []string{"ClientAliveInterval", "ClientAliveCountMax", "TCPKeepAlive"} {
			switch {
			case !strings.EqualFold(known, key):
			case matching:
				r.problem("%s:%d: %s in a Match block holds for some clients only", name, d.line, known)
			case r.value(known) == "":
				r.set(known, value, name, d.line)
			}
		}
	}
}
