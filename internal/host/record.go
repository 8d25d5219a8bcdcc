package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// record is the journal of what Set changed on one host, or in one network
// namespace of it: a file in the state folder that is replaced as a whole and
// durable before anything is touched.
type record struct {
	Version  int       `json:"version"`
	Boot     string    `json:"boot"`
	Netns    uint32    `json:"netns,omitempty"`
	Cookie   uint64    `json:"netns_cookie,omitempty,string"`
	At       time.Time `json:"at"`       // of the first change
	Original snapshot  `json:"original"` // before the first change
	// Before is what there was before a change whose end is not known, or what a
	// restoring goes back to; nil when none is under way.
	Before *snapshot `json:"before"`
	// Wrote is all that Set has written, by name, and the SHA-256 of every
	// content the file was given. What is not in it somebody else has set, and
	// is left alone.
	Wrote map[string][]string `json:"wrote"`
	Files []string            `json:"files"`
}

const recordVersion = 1

// snapshot is what can be put back.
type snapshot struct {
	Live map[string]*string `json:"live"` // nil: the system kept no value
	File *fileState         `json:"file"` // nil: not touched
}

// fileState is a file as it was.
type fileState struct {
	Path    string `json:"path"`
	Exists  bool   `json:"exists"`
	Mode    uint32 `json:"mode,omitempty"`
	UID     int    `json:"uid,omitempty"`
	GID     int    `json:"gid,omitempty"`
	Content []byte `json:"content,omitempty"`
	// NoFolder says that the folder was not there, either.
	NoFolder bool `json:"no_folder,omitempty"`
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// remember adds the originals of what is about to be written, keeping those
// that are there, and what will be written.
func (r *record) remember(before snapshot, values []wanted, file []byte) {
	if r.Original.Live == nil {
		r.Original.Live, r.Wrote = map[string]*string{}, map[string][]string{}
	}
	for name, v := range before.Live {
		if _, known := r.Original.Live[name]; !known {
			r.Original.Live[name] = v
		}
	}
	if r.Original.File == nil {
		r.Original.File = before.File
	}
	for _, w := range values {
		if !slices.Contains(r.Wrote[w.name], w.value) {
			r.Wrote[w.name] = append(r.Wrote[w.name], w.value)
		}
	}
	if hash := hashOf(file); before.File != nil && !slices.Contains(r.Files, hash) {
		r.Files = append(r.Files, hash)
	}
	r.Before = &before
}

// parseRecord reads a journal and returns an error for one that no Set of this
// version writes: a name that is not one of the parameters, another file.
func parseRecord(b []byte, parameters []Parameter, path string) (*record, error) {
	var r record
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("version %d, this deadpeer knows %d", r.Version, recordVersion)
	}
	snapshots := []snapshot{r.Original}
	if r.Before != nil {
		snapshots = append(snapshots, *r.Before)
	}
	for _, s := range snapshots {
		for name, v := range s.Live {
			at := slices.IndexFunc(parameters, func(p Parameter) bool { return p.Name == name })
			if at < 0 {
				return nil, fmt.Errorf("%q is not a parameter", name)
			}
			if v == nil {
				continue
			}
			if _, ok := parameters[at].parse(*v); !ok {
				return nil, fmt.Errorf("%q is not a value of %s", *v, name)
			}
		}
		if f := s.File; f != nil && (f.Path != path || path == "") {
			return nil, fmt.Errorf("%q is not the file that is set here", f.Path)
		}
	}
	return &r, nil
}

// store writes the journal: complete under its name, and durable, or not at
// all.
func (r *record) store(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := replace(path, append(b, '\n'), 0o600, nil); err != nil {
		return fmt.Errorf("write journal: %w", denied(err))
	}
	return nil
}

// load reads the journal; nil when there is none.
func (h *Host) load() (*record, error) {
	b, err := readLimited(h.journal())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w (needs root)", err)
		}
		return nil, fmt.Errorf("read journal: %w", err)
	}
	path, _ := h.sys.file()
	r, err := parseRecord(b, h.sys.parameters(), path)
	if err != nil {
		return nil, fmt.Errorf("read journal %s: %w; move it away once you have looked at it", h.journal(), err)
	}
	return r, nil
}

// forget removes the journal, for good when it returns.
func (h *Host) forget() error {
	if err := remove(h.journal()); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return syncFolder(filepath.Dir(h.journal()))
}

// journal is where the record is kept.
func (h *Host) journal() string {
	name := "host.json"
	if n := h.options.Netns; n != nil && !n.Boot {
		name = fmt.Sprintf("netns-%d.json", n.Inode)
	}
	return filepath.Join(h.options.StateDir, name)
}
