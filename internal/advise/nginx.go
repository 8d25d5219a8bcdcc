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

// nginx reads nginx.conf and what it includes: the listen lines of every
// server, and proxy_socket_keepalive.
func (r *reading) nginx() {
	file := "/etc/nginx/nginx.conf"
	// The master's title: "nginx: master process /usr/sbin/nginx -c FILE".
	args := strings.Fields(strings.Join(r.args, " "))
	prefix := ""
	for i := 0; i+1 < len(args); i++ {
		switch args[i] {
		case "-c":
			file = args[i+1]
		case "-p":
			prefix = absolute(r.cwd, args[i+1])
			if file == "/etc/nginx/nginx.conf" {
				file = "conf/nginx.conf"
			}
		}
	}
	if prefix == "" {
		prefix = r.cwd
	}
	n := nginxReader{reading: r, sockets: map[uint16]listen{}}
	file = absolute(prefix, file)
	n.folder = path.Dir(file)
	n.read(file, nil)
	for _, port := range slices.Sorted(maps.Keys(n.sockets)) {
		r.nginxExpect(port, n.sockets[port])
	}
}

// listen is what the listen lines of one port say.
type listen struct {
	value string // of so_keepalive, "" when none has it
	file  string
	line  int
}

func (r *reading) nginxExpect(port uint16, l listen) {
	key := "so_keepalive of port " + strconv.Itoa(int(port))
	if l.value == "" {
		r.set(key, "not set", l.file, l.line)
		r.expectPolicy(port, false, keepalive.Policy{})
		return
	}
	r.set(key, l.value, l.file, l.line)
	p := keepalive.Policy{}
	parts := strings.Split(l.value, ":")
	switch {
	case l.value == "on" || l.value == "off":
	case len(parts) != 3:
		r.problem("%s:%d: so_keepalive=%s is not on, off or idle:interval:probes", l.file, l.line, l.value)
		return
	default:
		idle, _ := span(parts[0], time.Second)
		interval, _ := span(parts[1], time.Second)
		probes, _ := strconv.Atoi(parts[2])
		p = keepalive.Policy{Idle: idle, Interval: interval, Probes: max(0, probes)}
	}
	r.expectPolicy(port, l.value != "off", p)
}

type nginxReader struct {
	*reading
	folder  string // relative includes are below that of the first file
	sockets map[uint16]listen
}

// read reads a file whose directives stand inside the blocks of context.
func (n *nginxReader) read(name string, context []string) {
	text, ok := n.file(name, true)
	if !ok {
		return
	}
	for _, d := range parseNginx(text) {
		within := append(slices.Clip(context), strings.Fields(d.section)...)
		block := ""
		if len(within) > 0 {
			block = within[len(within)-1]
		}
		switch {
		case d.word(0) == "include":
			for _, f := range n.glob(absolute(n.folder, d.word(1))) {
				n.include(func() { n.read(f, within) })
			}
		case d.word(0) == "listen" && block == "server":
			n.listen(d, name)
		case d.word(0) == "proxy_socket_keepalive":
			n.set("proxy_socket_keepalive", d.word(1), name, d.line)
		}
	}
}

// listen notes a listen line. nginx sets the options once for each address
// and port; which address a connection came by does not matter here.
func (n *nginxReader) listen(d directive, file string) {
	address := d.word(1)
	if strings.HasPrefix(address, "unix:") {
		return
	}
	text := address[strings.LastIndexByte(address, ':')+1:]
	if strings.HasSuffix(text, "]") {
		text = "80"
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		port = 80 // an address without a port
	}
	l, known := n.sockets[uint16(port)]
	if !known {
		l = listen{"", file, d.line}
	}
	for _, w := range d.words[min(2, len(d.words)):] {
		if value, ok := strings.CutPrefix(w, "so_keepalive="); ok {
			l = listen{value, file, d.line}
		}
	}
	n.sockets[uint16(port)] = l
}

// parseNginx splits a file into directives; their section is the names of the
// blocks they stand in. The head of a block is no directive.
func parseNginx(text string) (list []directive) {
	var blocks []string
	var words []string
	var word strings.Builder
	inside := false
	first, line := 0, 1
	end := func() {
		if inside {
			if len(words) == 0 {
				first = line
			}
			words = append(words, word.String())
			word.Reset()
			inside = false
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\n' || c == ' ' || c == '\t' || c == '\r':
			end()
		case c == '#' && !inside:
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case (c == '"' || c == '\'') && !inside:
			inside = true
			for i++; i < len(text) && text[i] != c; i++ {
				if text[i] == '\\' && i+1 < len(text) {
					i++
				}
				if text[i] == '\n' {
					line++
				}
				word.WriteByte(text[i])
			}
			end()
		case c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			inside = true
			c = text[i]
		case c == ';':
			end()
			if len(words) > 0 {
				list = append(list, directive{strings.Join(blocks, " "), words, first})
			}
			words = nil
		case c == '$' && i+1 < len(text) && text[i+1] == '{': // ${variable}
			i++
			word.WriteString("${")
			inside = true
		case c == '{':
			end()
			name := "{"
			if len(words) > 0 && len(strings.Fields(words[0])) == 1 {
				name = words[0]
			}
			words = nil
			if len(blocks) < 64 { // deeper than any configuration; what is inside then counts for the block
				blocks = append(blocks, name)
			}
		case c == '}':
			if inside && strings.Contains(word.String(), "${") {
				word.WriteByte(c)
				continue
			}
			end()
			words = nil
			blocks = blocks[:max(0, len(blocks)-1)]
		default:
			word.WriteByte(c)
			inside = true
		}
		if c == '\n' {
			line++
		}
	}
	return list
}
