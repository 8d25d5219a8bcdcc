package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Orphan is the journal of a process that is gone without having put
// everything back. It is locked, so that nobody else replays it, until Remove
// or Close.
type Orphan struct {
	PID     int32    // of the process that wrote it
	Records []Record // what is still to be put back, by namespace, cookie, kind
	Torn    int64    // bytes at the end that a death in mid-write left unusable
	path    string
	file    *os.File
}

// Orphans lists the journals in the folder whose process is gone: no process
// of that pid, or one started at another time. It deletes those with nothing
// to put back, and those of an earlier boot, whose sockets are gone. Journals
// that another process holds, because it lives or because it replays them
// right now, are passed over, and so are other files. A folder that is not
// there has none; one that [Open] would refuse is an error.
//
// A journal that cannot be read is kept and reported in the error, beside the
// list of the others.
func Orphans(dir string) ([]Orphan, error) { return orphans(dir, true) }

// Left lists what [Orphans] does, and deletes nothing.
func Left(dir string) ([]Orphan, error) { return orphans(dir, false) }

func orphans(dir string, remove bool) ([]Orphan, error) {
	if err := checkDir(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("find orphaned journals: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("find orphaned journals: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find orphaned journals: %w", err)
	}
	var list []Orphan
	var errs []error
	for _, e := range entries {
		named, complete, ok := parseName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if !complete {
			if remove {
				errs = append(errs, removeIncomplete(path, named))
			}
			continue
		}
		o, err := adopt(path, boot, remove)
		if err != nil {
			errs = append(errs, fmt.Errorf("read journal %s: %w", path, err))
		} else if o != nil {
			list = append(list, *o)
		}
	}
	return list, errors.Join(errs...)
}

// adopt locks and reads one journal; nil when it is nobody's to replay. One
// with nothing to put back it removes, if it may.
func adopt(path string, boot [16]byte, remove bool) (*Orphan, error) {
	f, err := openFile(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			_ = f.Close() // nothing was written to it
		}
	}()
	if locked, err := tryLock(f); err != nil || !locked {
		return nil, err
	}
	// Another process may have replayed and removed it, or its owner renamed
	// it, between opening and locking.
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	opened, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(named, opened) {
		return nil, nil
	}
	h, l, torn, err := read(f)
	if err != nil {
		return nil, err
	}
	if h.boot != boot {
		return nil, removeIf(remove, path)
	}
	// The lock alone would tell, but for owners that close a journal with
	// records outstanding and live on.
	if alive, err := h.alive(); err != nil || alive {
		return nil, err
	}
	if len(l) == 0 && torn == 0 {
		return nil, removeIf(remove, path)
	}
	keep = true
	return &Orphan{PID: h.pid, Records: l.records(), Torn: torn, path: path, file: f}, nil
}

func removeIf(remove bool, path string) error {
	if !remove {
		return nil
	}
	return os.Remove(path)
}

// removeIncomplete deletes what a process left that died before its journal
// was complete, or while it made it smaller: the complete one stands beside it.
func removeIncomplete(path string, h header) error {
	alive, err := h.alive()
	if err != nil || alive {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// alive reports whether the process that the header names still runs.
func (h header) alive() (bool, error) {
	start, err := startTime(int(h.pid))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return start == h.start, err
}

// Remove deletes the journal, once its records are put back or their sockets
// are gone, and lets go of it.
func (o *Orphan) Remove() error {
	if err := errors.Join(os.Remove(o.path), o.file.Close()); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return nil
}

// Close lets go of the journal and keeps it for a later attempt.
func (o *Orphan) Close() error { return o.file.Close() }
