package advise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"deadpeer/internal/procfd"
)

// processes tells of the processes that own connections, each looked up once.
type processes struct {
	options Options
	root    string
	fs      *procfd.FS
	known   map[int32]process
}

type process struct {
	comm   string
	parent int32
	isGo   *bool
}

func newProcesses(o Options) *processes {
	root := o.ProcRoot
	if root == "" {
		root = "/proc"
	}
	return &processes{options: o, root: root, fs: procfd.New(root), known: map[int32]process{}}
}

func (p *processes) process(pid int32) process {
	known, ok := p.known[pid]
	if !ok {
		if found, err := p.fs.Process(pid); err == nil { // one that has ended stays without a name
			known = process{comm: found.Comm, parent: found.PPID}
		}
		p.known[pid] = known
	}
	return known
}

func (p *processes) comm(pid int32) string { return p.process(pid).comm }

// first goes up the parents for as long as they are of the same software.
func (p *processes) first(pid int32, same func(comm string) bool) int32 {
	const most = 64
	for range most {
		parent := p.process(pid).parent
		if parent < 1 || parent == pid || !same(p.comm(parent)) {
			break
		}
		pid = parent
	}
	return pid
}

// place tells where a process runs and how it was started. Its files are read
// below its own root when it lives in another mount namespace.
func (p *processes) place(pid int32) (place, error) {
	dir := filepath.Join(p.root, strconv.Itoa(int(pid)))
	line, err := readSome(filepath.Join(dir, "cmdline"), 1<<20)
	if err != nil {
		return place{}, fmt.Errorf("read command line: %w", err)
	}
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	cwd, err := os.Readlink(filepath.Join(dir, "cwd"))
	if err != nil {
		return place{}, fmt.Errorf("read working folder (needs CAP_SYS_PTRACE or the program's user): %w", err)
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		exe = "" // a kernel thread has none, and it only helps to find files
	}
	root := p.options.Root
	if root == "" {
		root = "/"
		own, err := os.Readlink(filepath.Join(p.root, "self/ns/mnt"))
		its, err2 := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err := errors.Join(err, err2); err != nil {
			return place{}, fmt.Errorf("compare mount namespaces: %w", err)
		}
		if own != its {
			root = filepath.Join(dir, "root")
		}
	}
	return place{tree: newTree(root), args: args, cwd: cwd, exe: exe}, nil
}

// isGo reports whether a process runs a program built by Go: those begin with
// an ELF note of type 4 and name "Go" (cmd/internal/buildid), next to their
// headers. Package debug/buildinfo is not made for files of strangers.
func (p *processes) isGo(pid int32) bool {
	known := p.process(pid)
	if known.isGo == nil {
		head, err := readSome(filepath.Join(p.root, strconv.Itoa(int(pid)), "exe"), 64<<10)
		known.isGo = new(err == nil && bytes.Contains(head, []byte("\x04\x00\x00\x00Go\x00\x00")))
		p.known[pid] = known
	}
	return *known.isGo
}

func readSome(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, limit))
}
