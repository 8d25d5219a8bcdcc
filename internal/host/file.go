package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// replace gives a file new content at once: a reader sees the old or the new,
// and after a loss of power there is one of them. between is called with the
// new file before it has its name; nil for nothing.
func replace(path string, content []byte, mode fs.FileMode, between func(f *os.File) error) (err error) {
	temp := tempOf(path)
	// What a killed process left is not opened: it may be a link by now.
	if err := remove(temp); err != nil {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if err == nil && between != nil {
		err = between(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// maxFile bounds the files that are read, in bytes.
const maxFile = 1 << 20

// readLimited reads a regular file of at most maxFile bytes.
func readLimited(path string) ([]byte, error) {
	f, err := openRead(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f)
}

func readAll(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", f.Name())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", f.Name(), maxFile)
	}
	return b, err
}

// tempOf is the name that a file has until it is complete. No reader takes it
// for one of its own: those end in .conf.
func tempOf(path string) string { return path + ".new" }

// stateOf reads a file below root so that it can be put back. A symlink, or
// anything else that is no regular file, is an error: it was made by somebody
// for a purpose that replacing it would break.
func stateOf(root, path string) (*fileState, error) {
	s := &fileState{Path: path}
	full := filepath.Join(root, path)
	st, err := os.Lstat(full)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Dir(full))
		s.NoFolder = errors.Is(err, fs.ErrNotExist)
		return s, nil
	} else if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is a %s: remove it, or set its target by hand", path, kindOf(st.Mode()))
	}
	if s.Content, err = readLimited(full); err != nil {
		return nil, err
	}
	s.Exists, s.Mode = true, uint32(st.Mode().Perm())
	s.UID, s.GID = owner(st)
	return s, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m.IsDir():
		return "folder"
	}
	return "special file"
}

// putFile makes the file what the state says. written is called when all of it
// is on disk under another name.
func putFile(root string, s *fileState, written func()) error {
	full := filepath.Join(root, s.Path)
	if err := remove(tempOf(full)); err != nil {
		return err
	}
	if !s.Exists {
		if err := remove(full); err != nil {
			return err
		}
		if s.NoFolder { // one that has got other files stays
			if err := os.Remove(filepath.Dir(full)); err == nil {
				return syncFolder(filepath.Dir(filepath.Dir(full)))
			}
		}
		return ignoreMissing(syncFolder(filepath.Dir(full)))
	}
	if s.NoFolder {
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := syncFolder(filepath.Dir(filepath.Dir(full))); err != nil {
			return err
		}
	}
	return replace(full, s.Content, fs.FileMode(s.Mode), func(f *os.File) error {
		err := giveTo(f, s.UID, s.GID)
		if err == nil && written != nil {
			err = f.Sync()
			written()
		}
		return err
	})
}

// remove removes a file that may be gone already.
func remove(path string) error { return ignoreMissing(os.Remove(path)) }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
