package advise

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// Config is what the configuration of a program says now.
type Config struct {
	Files    []string      // read, in that order
	Settings []Setting     // in force, of the entry's keys
	Harmful  []string      // what is set and defeats keepalive
	Problems []string      // what could not be read
	Within   time.Duration // a vanished peer is given up after that; 0 when the host or nobody decides
	Asks     bool          // the program asks its peers itself, whatever the sockets' settings

	expect []expectation
}

// Setting is one value in force. All strings are printable.
type Setting struct {
	Key   string
	Value string
	File  string // "command line" when it stands there
	Line  int    // 0 when it has none
}

// expectation is what the configuration makes of a socket. Zero parts are the
// host's and not compared.
type expectation struct {
	port   uint16 // local port it holds for; 0 for those that no other names
	on     bool
	policy keepalive.Policy
}

// agrees reports whether a socket is as the configuration has it.
func (e expectation) agrees(s keepalive.Settings) bool {
	p := e.policy
	switch {
	case e.on != s.KeepAlive:
		return false
	case !e.on:
		return true
	}
	return (p.Idle == 0 || p.Idle == s.Idle) && (p.Interval == 0 || p.Interval == s.Interval) &&
		(p.Probes == 0 || p.Probes == s.Probes) && (p.UserTimeout == 0 || p.UserTimeout == s.UserTimeout)
}

// agrees reports whether a socket with this local port is as configured;
// known is false when the configuration does not tell.
func (c *Config) agrees(port uint16, s keepalive.Settings) (agrees, known bool) {
	for _, wanted := range []uint16{port, 0} {
		for _, e := range c.expect {
			if e.port == wanted {
				known = true
				agrees = agrees || e.agrees(s)
			}
		}
		if known {
			break
		}
	}
	return agrees, known
}

// place is where a program runs and how it was started.
type place struct {
	tree fs.FS
	args []string // of the process that was started first, with its name
	cwd  string
	exe  string
}

// readConfig reads the configuration of a program, nil when nobody knows how.
func readConfig(id string, p place) *Config {
	readers := map[string]func(*reading){
		"firebird": (*reading).firebird, "interbase": (*reading).interbase, "postgresql": (*reading).postgres,
		"mariadb": (*reading).mariadb, "mysql": (*reading).mysql, "pgbouncer": (*reading).pgbouncer,
		"redis": (*reading).redis, "nginx": (*reading).nginx, "haproxy": (*reading).haproxy, "sshd": (*reading).sshd,
	}
	read := readers[id]
	if read == nil {
		return nil
	}
	r := &reading{place: p}
	read(r)
	if len(r.Files) == 0 && len(r.Settings) == 0 && len(r.Problems) == 0 {
		r.problem("no configuration file found in the usual places")
	}
	return &r.Config
}

// Bounds of what is read of one program.
const (
	maxFile  = 4 << 20
	maxFiles = 500
	maxBytes = 32 << 20 // of all files
	maxDepth = 10       // of includes
	maxGlobs = 2        // folders and names with wildcards in one pattern
	maxSaid  = 1000     // settings, and likewise kinds of sockets
	maxWrong = 20       // problems
)

var errNotRegular = errors.New("not a regular file")

// reading reads the configuration of one program.
type reading struct {
	place
	Config
	opened int
	bytes  int
	depth  int
}

func (r *reading) problem(format string, args ...any) {
	if len(r.Problems) > maxWrong {
		return
	}
	text := conn.Printable(fmt.Sprintf(format, args...))
	if slices.Contains(r.Problems, text) {
		return
	}
	if len(r.Problems) == maxWrong {
		text = "and more"
	}
	r.Problems = append(r.Problems, text)
}

// set notes a value; the last one of a key wins.
func (r *reading) set(key, value, file string, line int) {
	s := Setting{conn.Printable(key), conn.Printable(value), conn.Printable(file), line}
	for i := range r.Settings {
		if r.Settings[i].Key == s.Key {
			r.Settings[i] = s
			return
		}
	}
	if len(r.Settings) == maxSaid {
		r.problem("more than %d settings: the rest is not considered", maxSaid)
		return
	}
	r.Settings = append(r.Settings, s)
}

// value is the value of a key in force, "" when it is not set.
func (r *reading) value(key string) string {
	for _, s := range r.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// file reads a file; missing tells whether its absence is a problem.
func (r *reading) file(name string, missing bool) (text string, ok bool) {
	if r.opened++; r.opened > maxFiles || r.bytes > maxBytes {
		r.problem("more than %d files or %d bytes: the rest was not read", maxFiles, maxBytes)
		return "", false
	}
	text, err := readFile(r.tree, name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !missing:
		return "", false
	case err != nil:
		r.problem("%v", err)
		return "", false
	}
	r.bytes += len(text)
	r.Files = append(r.Files, conn.Printable(name))
	return text, true
}

// include runs read, unless includes go too deep.
func (r *reading) include(read func()) {
	if r.depth == maxDepth {
		r.problem("includes are nested more than %d deep: the rest was not read", maxDepth)
		return
	}
	r.depth++
	read()
	r.depth--
}

// glob lists what matches, sorted; a name without wildcards is itself.
func (r *reading) glob(pattern string) []string {
	if !strings.ContainsAny(pattern, `*?[`) {
		return []string{pattern}
	}
	globs := 0
	for part := range strings.SplitSeq(pattern, "/") {
		if strings.ContainsAny(part, `*?[`) {
			globs++
		}
	}
	if globs > maxGlobs {
		r.problem("read %s: wildcards in more than %d of its folders", pattern, maxGlobs)
		return nil
	}
	list, err := fs.Glob(r.tree, inside(pattern))
	if err != nil {
		r.problem("read %s: %v", pattern, err)
	}
	for i := range list {
		list[i] = "/" + list[i]
	}
	slices.Sort(list)
	return list
}

// first is the first of the patterns' matches that is there, "" for none.
func (r *reading) first(patterns ...string) string {
	for _, p := range patterns {
		for _, name := range r.glob(p) {
			if f, err := r.tree.Open(inside(name)); err == nil {
				_ = f.Close()
				return name
			}
		}
	}
	return ""
}

// absolute is a name as seen from folder.
func absolute(folder, name string) string {
	if strings.HasPrefix(name, "/") {
		return path.Clean(name)
	}
	return path.Join("/", folder, name)
}

// inside turns an absolute path into one of fs.FS.
func inside(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

func readFile(tree fs.FS, name string) (string, error) {
	f, err := tree.Open(inside(name))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, cause(err))
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, cause(err))
	}
	switch {
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("read %s: %w", name, errNotRegular)
	case info.Size() > maxFile:
		return "", fmt.Errorf("read %s: longer than %d bytes", name, maxFile)
	}
	// No more than its length: files of procfs have none, and reading some of
	// them (kmsg) waits, and takes from others what is read.
	text, err := io.ReadAll(io.LimitReader(f, info.Size()))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, cause(err))
	}
	return string(text), nil
}

// cause leaves out the path, which the message has already.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
