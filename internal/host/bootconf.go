package host

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"
)

// The rules of sysctl.d(5) and sysctl.conf(5). Two programs read the same
// files and do not agree in everything: systemd-sysctl(8), and procps'
// sysctl(8) with --system. Both were measured: systemd 252, procps-ng 4.0.2.

// confFile is one configuration file as the readers see it.
type confFile struct {
	dir     string // such as /etc/sysctl.d; "" for files of /etc itself, read after all others
	name    string
	content []byte
	masked  bool // there, but it says nothing: a symlink to /dev/null or to nothing, or a folder
}

func (f confFile) path() string {
	if f.dir == "" {
		return "/etc/" + f.name
	}
	return f.dir + "/" + f.name
}

const sysctlConf = "/etc/sysctl.conf"

// confDirs are the folders, the one that wins by equal names first.
func confDirs() []string {
	return []string{"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"}
}

// reader is a program that applies the files at boot.
type reader string

// The readers.
const (
	systemd reader = "systemd-sysctl"
	procps  reader = "sysctl --system"
)

// order gives the files as the reader goes through them: by name, whatever
// their folder, each name from the first folder that has it; procps reads
// /etc/sysctl.conf after all, systemd only where something links to it.
func (r reader) order(files []confFile) (list []confFile) {
	var last []confFile
	for _, dir := range append(confDirs(), "") {
		for _, f := range files {
			switch {
			case f.dir != dir:
			case dir == "":
				if r == procps {
					last = append(last, f)
				}
			case !strings.HasSuffix(f.name, ".conf"), r == systemd && strings.HasPrefix(f.name, "."):
			case !slices.ContainsFunc(list, func(have confFile) bool { return have.name == f.name }):
				list = append(list, f)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b confFile) int { return strings.Compare(a.name, b.name) })
	return append(list, last...)
}

// assignment is one line that says something.
type assignment struct {
	key     string // path below /proc/sys
	value   string
	exclude bool // "-key" without a value
	file    string
	line    int
}

func (a assignment) glob() bool { return strings.ContainsAny(a.key, "*?[") }

func (a assignment) matches(key string) bool {
	ok, err := path.Match(strings.ReplaceAll(a.key, "[!", "[^"), key)
	return err == nil && ok
}

// parseConf reads the lines of a file.
func (r reader) parseConf(f confFile) (list []assignment) {
	if f.masked {
		return nil
	}
	n := 0
	for line := range bytes.Lines(f.content) {
		n++
		if a, ok := r.parseLine(string(line)); ok {
			a.file, a.line = f.path(), n
			list = append(list, a)
		}
	}
	return list
}

// parseLine reads one line; ok is false when it says nothing.
func (r reader) parseLine(line string) (a assignment, ok bool) {
	text := strings.TrimSpace(line)
	if text == "" || text[0] == '#' || text[0] == ';' {
		return a, false
	}
	key, value, assigns := strings.Cut(text, "=")
	key, dash := strings.CutPrefix(key, "-")
	if r == procps && strings.HasPrefix(key, " ") || !assigns && !dash {
		return a, false
	}
	a.key, a.value, a.exclude = sysctlPath(strings.TrimSpace(key)), strings.TrimSpace(value), !assigns
	return a, a.key != ""
}

// sysctlPath gives the path that a key names: where the first separator is a
// dot, dots and slashes change places (sysctl.d(5)).
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		key = strings.Map(func(c rune) rune {
			switch c {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return c
		}, key)
	}
	parts := strings.FieldsFunc(key, func(c rune) bool { return c == '/' })
	return strings.Join(parts, "/")
}

// Persisted is what will be in force after the next boot, and what says so.
type Persisted struct {
	Value int64
	File  string
	Line  int // 0 where there are no lines
}

// winner tells what a parameter will be after boot; ok is false when nothing
// sets it, so that the kernel's default stays.
//
// Both let a key that is named win over a pattern, whatever their order. With
// systemd the last line on a key counts, even if it is "-key" or has a value
// that the kernel refuses. procps writes line by line, so a refused one
// leaves what came before, and "-key" keeps patterns away only.
func (r reader) winner(p Parameter, files []confFile) (w Persisted, ok bool) {
	key := sysctlPath(p.Name)
	var named, patterns []assignment
	for _, f := range r.order(files) {
		for _, a := range r.parseConf(f) {
			switch {
			case a.key == key:
				named = append(named, a)
			case a.glob() && a.matches(key):
				patterns = r.addPattern(patterns, a)
			}
		}
	}
	list := named
	if len(named) == 0 {
		list = patterns
	} else if r == systemd {
		list = named[len(named)-1:]
	}
	for _, a := range slices.Backward(list) {
		if v, good := p.parse(a.value); good && !a.exclude {
			return Persisted{v, a.file, a.line}, true
		}
	}
	return w, false
}

// addPattern books a pattern. systemd knows each once: a later line moves it to
// the end, unless it says the same.
func (r reader) addPattern(list []assignment, a assignment) []assignment {
	if r == systemd {
		at := slices.IndexFunc(list, func(b assignment) bool { return b.key == a.key })
		if at >= 0 && list[at].value == a.value && list[at].exclude == a.exclude {
			return list
		} else if at >= 0 {
			list = slices.Delete(list, at, at+1)
		}
	}
	return append(list, a)
}

// wanted is a value to be written.
type wanted struct {
	name  string
	value string
}

const confHeader = "# Written by deadpeer tune set. deadpeer tune restore puts back what was here before.\n"

// editConf gives content with the values in it: lines that set or exclude the
// same keys go, all others stay.
func editConf(content []byte, values []wanted) []byte {
	var out []byte
	if len(content) == 0 {
		out = append(out, confHeader...)
	}
	for line := range bytes.Lines(content) {
		a, ok := systemd.parseLine(string(line))
		if ok && slices.ContainsFunc(values, func(w wanted) bool { return sysctlPath(w.name) == a.key }) {
			continue
		}
		out = append(out, line...)
	}
	if n := len(out); n > 0 && out[n-1] != '\n' {
		out = append(out, '\n')
	}
	for _, w := range values {
		out = append(out, w.name+" = "+w.value+"\n"...)
	}
	return out
}

// Where spells the place of a value.
func (w Persisted) Where() string {
	if w.Line == 0 {
		return w.File
	}
	return w.File + ":" + strconv.Itoa(w.Line)
}
