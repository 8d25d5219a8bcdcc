package advise

import (
	"path"
	"slices"
	"strings"
)

// firebird reads firebird.conf for the one key that matters, and the file by
// which xinetd starts Classic.
func (r *reading) firebird() {
	patterns := []string{"/etc/firebird/*/firebird.conf", "/etc/firebird/firebird.conf", "/opt/firebird/firebird.conf"}
	if r.exe != "" { // /opt/firebird/bin/firebird
		patterns = append([]string{path.Join(path.Dir(path.Dir(r.exe)), "firebird.conf"), path.Join(path.Dir(r.exe), "firebird.conf")}, patterns...)
	}
	if file := r.first(patterns...); file != "" {
		r.dummyPackets(file, "DummyPacketInterval")
	}
	r.xinetd()
}

// interbase does the same with ibconfig.
func (r *reading) interbase() {
	patterns := []string{"/opt/interbase/ibconfig", "/usr/interbase/ibconfig"}
	if r.exe != "" {
		patterns = append([]string{path.Join(path.Dir(path.Dir(r.exe)), "ibconfig")}, patterns...)
	}
	if file := r.first(patterns...); file != "" {
		r.dummyPackets(file, "DUMMY_PACKET_INTERVAL")
	}
	r.xinetd()
}

// dummyPackets looks for the key in "Key = value" or "KEY value" lines.
func (r *reading) dummyPackets(file, key string) {
	text, ok := r.file(file, true)
	if !ok {
		return
	}
	for _, d := range lines(strings.ReplaceAll(text, "=", " ")) {
		if !strings.EqualFold(d.word(0), key) {
			continue
		}
		r.set(key, d.word(1), file, d.line)
	}
	if v := r.value(key); v != "" && strings.Trim(v, "0") != "" {
		r.Harmful = append(r.Harmful, key+" = "+v+" defeats keepalive: comment it out")
	}
}

// xinetd looks whether a service of Firebird or InterBase is started by
// xinetd, and with which flags (xinetd.conf(5)).
func (r *reading) xinetd() {
	for _, name := range r.glob("/etc/xinetd.d/*") {
		base := path.Base(name)
		if !strings.Contains(base, "firebird") && !strings.Contains(base, "interbase") && !strings.Contains(base, "gds_db") {
			continue
		}
		text, ok := r.file(name, true)
		if !ok {
			continue
		}
		flags, line, disabled := xinetdFlags(text)
		if disabled {
			continue
		}
		if line > 0 {
			r.set("flags", flags, name, line)
		}
		if !slices.Contains(strings.Fields(strings.ToUpper(flags)), "KEEPALIVE") {
			r.problem("%s has no KEEPALIVE among its flags: Classic before 1.5 needs flags = REUSE KEEPALIVE", name)
		}
	}
}

// xinetdFlags gives the flags of the service, where they stand, and whether
// the service is disabled.
func xinetdFlags(text string) (flags string, line int, disabled bool) {
	for _, d := range assignments(text, "#") {
		value := strings.Join(strings.Fields(d.word(1)), " ")
		switch strings.ToLower(strings.TrimSpace(strings.TrimSuffix(d.word(0), "+"))) {
		case "flags":
			flags, line = strings.TrimSpace(flags+" "+value), d.line
		case "disable":
			disabled = strings.EqualFold(value, "yes")
		}
	}
	return flags, line, disabled
}
