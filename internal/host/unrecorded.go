package host

import (
	"bytes"
	"path/filepath"
	"strings"
)

// Unrecorded is a file that says that deadpeer has written it, and of which no
// journal tells, so that nothing can be put back: the journal was removed, or
// the file was copied from another host.
type Unrecorded struct {
	Path string
	Sets []string // "name = value", as in the file
}

// unrecorded finds it where there is no journal; nil for none. A file that
// others write to as well is not looked at: it is not to be removed.
func (h *Host) unrecorded() *Unrecorded {
	path, _ := h.sys.file()
	if path == "" || path == sysctlConf {
		return nil
	}
	b, err := readLimited(filepath.Join(h.options.Root, path))
	if err != nil || !bytes.HasPrefix(b, []byte(confHeader)) {
		return nil // also one that is masked, or a folder
	}
	u := &Unrecorded{Path: path}
	for line := range bytes.Lines(b) {
		if a, ok := systemd.parseLine(string(line)); ok && !a.exclude {
			u.Sets = append(u.Sets, strings.TrimSpace(string(line)))
		}
	}
	return u
}

// nothing is what there is to undo without a journal.
func (h *Host) nothing() Undone { return Undone{Nothing: true, Unrecorded: h.unrecorded()} }
