// Package journal remembers what deadpeer changed on sockets that are not its
// own, so that kill -9 never leaves one changed: what is to be put back is on
// disk before anything is touched, and the next deadpeer finds it.
//
// Each process has one file in the runtime folder (/run/deadpeer), locked for
// as long as it lives:
//
//	j, err := journal.Open(dir, journal.Options{})
//	err = j.Append(records) // durable when it returns: now change the sockets
//	err = j.Append(undone)  // Restored records, once they are as they were
//	err = j.Close()         // removes the file when nothing is left to undo
//
// A later process replays what [Orphans] finds. [Lock] lets one process per
// host ask at a time.
//
// Linux only; elsewhere every call returns an error matching
// [errors.ErrUnsupported]. Needs no privilege beyond a folder of its own.
package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Options configure a Journal.
type Options struct {
	// CompactAt is the size in bytes from which on the file is rewritten when
	// most of it is undone; 0 means 1 MiB.
	CompactAt int64
}

const defaultCompactAt = 1 << 20

// Journal is the file of this process. Safe for concurrent use.
type Journal struct {
	mu      sync.Mutex
	file    *os.File
	path    string
	header  header
	end     int64 // of the last durable record
	compact int64 // size that makes the next compaction worth while
	least   int64 // Options.CompactAt
	ledger  ledger
	buf     []byte
	broken  error // why nothing can be appended any more
}

// Open creates the folder if it is missing (mode 0700, but not its parents)
// and this process's file in it. It refuses a folder that is a symlink, that
// others may write to, or that another user owns. A process has one Journal at
// a time in a folder; run [Orphans] first.
func Open(dir string, o Options) (*Journal, error) {
	j, err := open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return j, nil
}

func open(dir string, o Options) (*Journal, error) {
	if err := prepareDir(dir); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	pid := os.Getpid()
	start, err := startTime(pid)
	if err != nil {
		return nil, err
	}
	if o.CompactAt <= 0 {
		o.CompactAt = defaultCompactAt
	}
	j := &Journal{
		header:  header{boot: boot, pid: int32(pid), start: start},
		compact: o.CompactAt,
		least:   o.CompactAt,
		ledger:  ledger{},
	}
	j.path = filepath.Join(dir, j.header.fileName())
	if _, err := os.Lstat(j.path); err == nil {
		return nil, fmt.Errorf("%s: %w (this process has one, or kept one; or an earlier boot left it, which Orphans clears)", j.path, fs.ErrExist)
	}
	if j.file, j.end, err = j.write(); err != nil {
		return nil, err
	}
	return j, nil
}

// write makes a whole file of the header and the ledger, locked, durable, and
// under its name only when complete.
func (j *Journal) write() (_ *os.File, size int64, err error) {
	f, err := openFile(j.path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()), f.Close())
		}
	}()
	locked, err := tryLock(f)
	if err == nil && !locked {
		err = fmt.Errorf("%s: locked by another process", f.Name())
	}
	if err != nil {
		return nil, 0, err
	}
	b := j.header.append(nil)
	for _, r := range j.ledger.records() {
		b = r.append(b)
	}
	if _, err = f.Write(b); err != nil {
		return nil, 0, err
	}
	if err = dataSync(f); err != nil {
		return nil, 0, err
	}
	if err = os.Rename(f.Name(), j.path); err != nil {
		return nil, 0, err
	}
	return f, int64(len(b)), nil
}

// Append writes the records in one write and returns when they are durable
// (fdatasync(2)). After an error none of them counts; after one of the sync,
// or one that could not be undone, every later Append fails with it, too,
// since what is on disk is not known any more.
func (j *Journal) Append(records []Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.append(records); err != nil {
		return fmt.Errorf("append to journal: %w", err)
	}
	return nil
}

func (j *Journal) append(records []Record) error {
	switch {
	case j.broken != nil:
		return j.broken
	case len(records) == 0:
		return nil
	}
	j.buf = j.buf[:0]
	for i := range records {
		if records[i].size() == 0 || records[i].ID.Cookie == 0 {
			return fmt.Errorf("record of kind %d for %v: not one that can be undone", records[i].Kind, records[i].ID)
		}
		j.buf = records[i].append(j.buf)
	}
	if _, err := j.file.WriteAt(j.buf, j.end); err != nil {
		// What was written must not pass for records once others follow it.
		if undo := j.file.Truncate(j.end); undo != nil {
			j.broken = errors.Join(err, undo)
		}
		return err
	}
	if err := dataSync(j.file); err != nil {
		j.broken = err
		return err
	}
	j.end += int64(len(j.buf))
	for i := range records {
		j.ledger.apply(records[i])
	}
	if j.end > j.compact {
		j.shrink()
	}
	return nil
}

// shrink rewrites the file without what is undone, unless that would hardly
// make it smaller. If it cannot, the old file goes on.
func (j *Journal) shrink() {
	if live := int64(headerSize) + j.ledger.size(); live <= j.end/2 {
		if f, size, err := j.write(); err == nil {
			_ = j.file.Close() // its name is gone, and what it says is in f
			j.file, j.end = f, size
		}
	}
	j.compact = max(j.least, 2*j.end)
}

// Outstanding is how many sockets still have something to be put back.
func (j *Journal) Outstanding() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.ledger)
}

// Close removes the file when nothing is outstanding, and keeps it for the
// next process's [Orphans] otherwise. Closing again does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	var err error
	if len(j.ledger) == 0 {
		err = os.Remove(j.path)
	}
	if err = errors.Join(err, j.file.Close()); err != nil {
		err = fmt.Errorf("close journal: %w", err)
	}
	j.file, j.broken = nil, os.ErrClosed
	return err
}
