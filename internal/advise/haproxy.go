package advise

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"deadpeer/keepalive"
)

var haproxyKeys = []string{"clitcpka-idle", "clitcpka-intvl", "clitcpka-cnt", "srvtcpka-idle", "srvtcpka-intvl", "srvtcpka-cnt"}

// haproxy reads the files of its command line (-f, repeatable; of a folder the
// *.cfg). A proxy begins with the settings of the defaults section before it,
// or of the one it names (HAProxy's configuration manual, section 4).
func (r *reading) haproxy() {
	var files []string
	for i := range r.args {
		if r.args[i] == "-f" && i+1 < len(r.args) {
			name := absolute(r.cwd, r.args[i+1])
			if list := r.glob(path.Join(name, "*.cfg")); len(list) > 0 {
				files = append(files, list...)
				continue
			}
			files = append(files, name)
		}
	}
	if files == nil {
		files = []string{"/etc/haproxy/haproxy.cfg"}
	}
	h := haproxyReader{reading: r, named: map[string]map[string]string{}}
	for _, f := range files {
		if text, ok := r.file(f, true); ok {
			h.section = ""
			for _, d := range lines(text) {
				h.directive(d, f)
			}
		}
	}
	h.end()
}

type haproxyReader struct {
	*reading
	section  string
	name     string
	defaults map[string]string // of the last defaults section
	named    map[string]map[string]string
	settings map[string]string // of this section
	ports    []uint16
}

func (h *haproxyReader) directive(d directive, file string) {
	switch d.word(0) {
	case "global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "mailers", "cache", "program",
		"ring", "http-errors", "fcgi-app", "log-forward", "crt-store", "traces":
		h.end()
		h.section, h.name, h.ports = d.word(0), d.word(1), nil
		h.settings = map[string]string{}
		if h.section == "defaults" {
			h.defaults = h.settings
			if h.name != "" {
				h.named[h.name] = h.settings
			}
		}
		from := h.defaults
		if i := slices.Index(d.words, "from"); i >= 0 && i+1 < len(d.words) {
			from = h.named[d.words[i+1]]
		}
		if h.section != "global" {
			maps.Copy(h.settings, from)
		}
	case "bind":
		for address := range strings.SplitSeq(d.word(1), ",") {
			port, err := strconv.ParseUint(address[strings.LastIndexByte(address, ':')+1:], 10, 16)
			if err == nil {
				h.ports = append(h.ports, uint16(port))
			}
		}
	case "option":
		if w := d.word(1); w == "clitcpka" || w == "srvtcpka" || w == "tcpka" {
			h.put("option "+w, "on", d, file)
		}
	case "no":
		if w := d.word(2); d.word(1) == "option" && (w == "clitcpka" || w == "srvtcpka" || w == "tcpka") {
			h.put("option "+w, "off", d, file)
		}
	default:
		if slices.Contains(haproxyKeys, d.word(0)) {
			h.put(d.word(0), d.word(1), d, file)
		}
	}
}

func (h *haproxyReader) put(key, value string, d directive, file string) {
	if h.settings == nil {
		h.problem("%s:%d: %s outside of a section", file, d.line, key)
		return
	}
	h.settings[key] = value
	h.set(strings.TrimSpace(h.section+" "+h.name)+": "+key, value, file, d.line)
}

// end closes a section: what its proxy's sockets should have.
func (h *haproxyReader) end() {
	side := func(prefix string) (bool, keepalive.Policy) {
		on := h.settings["option "+prefix] == "on" || h.settings["option tcpka"] == "on"
		part := func(name string) time.Duration {
			d, ok := span(h.settings[prefix+name], time.Second)
			if v := h.settings[prefix+name]; v != "" && !ok {
				h.problem("%s%s: %q is no time", prefix, name, v)
			}
			return d
		}
		probes, err := strconv.Atoi(h.settings[prefix+"-cnt"])
		if err != nil || probes < 0 {
			probes = 0
		}
		return on, keepalive.Policy{Idle: part("-idle"), Interval: part("-intvl"), Probes: probes}
	}
	if h.section == "frontend" || h.section == "listen" {
		on, p := side("clitcpka")
		for _, port := range h.ports {
			h.expectPolicy(port, on, p)
		}
	}
	if h.section == "backend" || h.section == "listen" {
		on, p := side("srvtcpka")
		h.expectPolicy(0, on, p)
	}
	h.settings = nil
}
