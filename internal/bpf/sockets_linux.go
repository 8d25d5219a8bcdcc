package bpf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// readLen holds all that one read of an iterator gives (bpf_seq_read).
const readLen = 32 << 10

// Sockets is the loaded program that lists sockets. It is safe for concurrent
// use until Close.
type Sockets struct {
	hz      int64
	pin     string     // "" when the program is not pinned
	iter    *link.Iter // nil when it is pinned
	pinning error      // why it is not
}

// OpenSockets takes the program from where an earlier run pinned it, or loads
// it (some 25 ms) and pins it. Where it cannot be pinned it is loaded for this
// run alone. Pins of another build are never used, and removed.
func OpenSockets(o SocketsOptions) (*Sockets, error) {
	s := &Sockets{}
	var err error
	if s.hz, err = ticks(); err != nil {
		return nil, fmt.Errorf("open sockets program: read the kernel's tick rate: %w", err)
	}
	if s.pin, s.pinning = pinPath(o); s.pinning == nil && isPin(s.pin) {
		return s, nil
	}
	if s.iter, err = attachIter(); err != nil {
		return nil, fmt.Errorf("load sockets program: %w", err)
	}
	if s.pinning == nil {
		s.pinning = s.keep()
	}
	if s.pinning != nil {
		s.pin = ""
		return s, nil
	}
	it := s.iter
	s.iter = nil
	return s, it.Close()
}

// pinPath is where this build pins its program. The folder may not exist yet.
func pinPath(o SocketsOptions) (string, error) {
	if o.NoPin {
		return "", errors.New("not wanted")
	}
	dir := o.Dir
	if dir == "" {
		var err error
		if dir, err = PinDir(); err != nil {
			return "", err
		}
	}
	if err := trusted(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return filepath.Join(dir, socketsPrefix+build(_SocketsBytes)), nil
}

func attachIter() (*link.Iter, error) {
	spec, err := loadSockets()
	if err != nil {
		return nil, err
	}
	var programs socketsPrograms
	if err := load(spec, &programs); err != nil {
		return nil, err
	}
	it, err := link.AttachIter(link.IterOptions{Program: programs.Sockets})
	if err = errors.Join(explain(err), programs.Close()); err != nil {
		return nil, err
	}
	return it, nil
}

// socketsPrefix begins the name of a pin; the build follows.
const socketsPrefix = "sockets-"

// build names an object: what another build pinned may write other records.
func build(object []byte) string {
	sum := sha256.Sum256(object)
	return hex.EncodeToString(sum[:8])
}

// keep pins the iterator, and removes what other builds pinned.
func (s *Sockets) keep() error {
	dir := filepath.Dir(s.pin)
	if err := makeDir(dir); err != nil {
		return err
	}
	if err := s.iter.Pin(s.pin); err != nil && !isPin(s.pin) { // another process may have been first
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); strings.HasPrefix(e.Name(), socketsPrefix) && path != s.pin {
			_ = os.Remove(path) // costs memory only
		}
	}
	return nil
}

// Pinned reports whether the next OpenSockets costs nothing; if not, why.
func (s *Sockets) Pinned() (bool, error) { return s.pin != "", s.pinning }

// Close lets go of the program. A pinned one stays in the kernel.
func (s *Sockets) Close() error {
	if s.iter == nil {
		return nil
	}
	return s.iter.Close()
}

// Each visits every descriptor that is a TCP socket, of the processes in the
// caller's pid namespace and of all network namespaces, with a Record that is
// used again for the next one. A thread that does not share its process's
// descriptors (unshare(2)) is not visited. An error of visit ends it and is
// returned. Descriptors that come and go meanwhile may be missed.
func (s *Sockets) Each(ctx context.Context, visit func(*Record) error) error {
	in, err := s.open()
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer func() { _ = in.Close() }()
	d := recordReader{hz: s.hz}
	if err := readIter(ctx, in, func(b []byte) ([]byte, error) { return d.read(b, visit) }); err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	return nil
}

func (s *Sockets) open() (io.ReadCloser, error) {
	if s.iter != nil {
		return s.iter.Open()
	}
	return os.Open(s.pin)
}

// readIter reads an iterator to its end. take gives back what it did not use.
func readIter(ctx context.Context, in io.Reader, take func([]byte) ([]byte, error)) error {
	buf := make([]byte, 2*readLen)
	held := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.Read(buf[held:])
		if n > 0 {
			rest, err := take(buf[:held+n])
			if err != nil {
				return err
			}
			held = copy(buf, rest)
			if held == len(buf) {
				return errors.New("a record is longer than any can be")
			}
		}
		switch {
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN): // a million objects without a record: read on
		case errors.Is(err, io.EOF) && held == 0:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the last record was cut at %d bytes", held)
		default:
			return err
		}
	}
}
